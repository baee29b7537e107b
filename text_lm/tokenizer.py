"""Tokenisers behind one small dataclass: plain bytes, a byte-level BPE trained here, or an existing one.

All are saved as ordinary Hugging Face tokenisers, so that ``AutoTokenizer`` and ``lm_eval`` load them beside the model.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from foundation.errors import CurationError
from foundation.files import check_json, json_file, load_json, save_json
from foundation.hub import hub_within_reach
from foundation.locks import locked_folder
from foundation.settings import Count

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
N_BYTES = 256


@dataclass(frozen=True)
class Tokenizer:
    """Text to token ids, without special tokens: the caller puts `bos` and `eos` around a document.

    Attributes:
        name: what it was opened by.
        vocab_size: ids are below this, special tokens included.
        bos, eos, pad: ids of the special tokens. An existing tokeniser may have one token for several of them.
        fingerprint: BLAKE2b-128 of the tokeniser's rules and vocabulary.
        encode: texts to int64 ids; a text that spells a special token is encoded as plain text.
        hf: the Hugging Face tokeniser.
    """

    name: str
    vocab_size: int
    bos: int
    eos: int
    pad: int
    fingerprint: str
    encode: Callable[[Sequence[str]], list[Int[np.ndarray, "t"]]] = field(repr=False)
    hf: Any = field(repr=False)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids, special tokens left out."""
        return str(self.hf.decode(list(map(int, ids)), skip_special_tokens=True))

    def save(self, folder: str | Path) -> None:
        """Write a folder that ``AutoTokenizer.from_pretrained`` loads."""
        self.hf.save_pretrained(str(folder))

    def export(self, folder: str | Path, context: int) -> None:
        """Write it beside a model, so that ``lm_eval`` with its default arguments scores what `score_texts` scores.

        The harness puts a bos before a document itself: the saved tokeniser adds none, it takes special tokens that a
        text spells as plain text, and it knows the model's context. ``add_bos_token=True`` brings the bos back.

        Args:
            context: tokens that the model sees.
        """
        folder = Path(folder)
        self.save(folder)
        rules = load_json(folder / "tokenizer.json")
        save_json(folder / "tokenizer.json", {**rules, "post_processor": None, "truncation": None, "padding": None})
        config = load_json(folder / "tokenizer_config.json")
        changed = {"model_max_length": context, "add_bos_token": False, "split_special_tokens": True}
        save_json(folder / "tokenizer_config.json", {**config, **changed})


def open_tokenizer(name: str | Path = "bytes") -> Tokenizer:
    """Open a tokeniser.

    Args:
        name: ``bytes`` (256 bytes and three special tokens), a folder that `Tokenizer.save` or any Hugging Face
            tokeniser wrote, a ``tokenizer.json``, or a Hub name.

    Raises:
        CurationError: nothing is there, it has no fast implementation, or no token that ends a document.
    """
    if str(name) == "bytes":
        return _wrap(_byte_level({_byte_characters()[byte]: byte for byte in range(N_BYTES)}, []), "bytes")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        path = Path(name)
        if path.is_file():
            json_file(path)
            hf: Any = PreTrainedTokenizerFast(tokenizer_file=str(path))
            known = hf.get_vocab()
            hf.add_special_tokens(
                {
                    key: token
                    for key, token in (("bos_token", BOS), ("eos_token", EOS), ("pad_token", PAD))
                    if token in known
                }
            )
        else:
            check_json(path)
            with nullcontext() if path.is_dir() else hub_within_reach():
                hf = AutoTokenizer.from_pretrained(str(name))
    except Exception as error:  # transformers raises many kinds, with pages of text
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CurationError(
            f"tokenizer {str(name)!r} cannot be opened ({reason}); use bytes, a tokenizer's folder or a Hub name"
        ) from error
    if not getattr(hf, "is_fast", False):
        raise CurationError(f"tokenizer {str(name)!r} has no fast implementation (tokenizer.json); use one that has")
    return _wrap(hf, str(name))


def train_bpe(texts: Iterable[str], vocab_size: int, name: str = "bpe") -> Tokenizer:
    """Train a byte-level BPE: it encodes any text, bytes it never saw included.

    Args:
        texts: what to learn merges from. The same texts in the same order give the same tokeniser.
        vocab_size: size with the three special tokens; at least 259.
        name: how errors and files call it.

    Raises:
        CurationError: the vocabulary is too small, or the texts cannot fill it.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, pre_tokenizers, trainers

    smallest = N_BYTES + 3
    if vocab_size < smallest:
        raise CurationError(f"vocabulary size {vocab_size} is too small; bytes and special tokens need {smallest}")
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 3,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=[],
    )
    backend.train_from_iterator(texts, trainer)
    learned = json.loads(backend.to_str())["model"]
    if len(learned["vocab"]) < vocab_size - 3:
        raise CurationError(
            f"the texts give only {len(learned['vocab']) + 3} tokens, not {vocab_size}; give more text or ask for fewer"
        )
    # bytes first and in order, then merges: id b is byte b in both of our tokenisers
    characters = _byte_characters()
    merges: list[tuple[str, str]] = [(left, right) for left, right in learned["merges"]]
    order = {characters[byte]: byte for byte in range(N_BYTES)}
    for left, right in merges:
        order.setdefault(left + right, len(order))
    return _wrap(_byte_level(order, merges), name)


@dataclass
class TrainedOn:
    """What ``trained_on.json`` holds beside a tokeniser that `bpe_folder` trained."""

    pool_fingerprint: str
    size: Count
    fingerprint: str


def bpe_folder(pool: Any, size: int, folder: Path) -> tuple[Tokenizer, bool]:
    """The tokeniser in ``folder``: opened where it was trained on the texts of this pool, else trained and saved.

    Returns:
        The tokeniser, and whether it was already there.

    Raises:
        CurationError: the folder holds another tokeniser, another process writes it, or see `train_bpe`.
    """
    from curation.pools.pool import check_text, pool_fingerprint

    check_text(pool, "text")
    wanted = {"pool_fingerprint": pool_fingerprint(pool), "size": size}
    note = folder / "trained_on.json"
    with locked_folder(folder):
        if note.exists() or (folder / "tokenizer.json").exists():
            found = load_json(note, TrainedOn, "choose another -o") if note.exists() else {}
            if any(found.get(key) != value for key, value in wanted.items()):
                raise CurationError(
                    f"{folder} holds a tokenizer of other settings or of another pool; choose another -o"
                )
            with suppress(CurationError):  # half written or damaged: trained again
                there = open_tokenizer(folder)
                if there.fingerprint == found["fingerprint"]:
                    return there, True
        trained = train_bpe((row["text"] or "" for row in pool), size)
        # before the tokeniser: without it, one that is cut short would be taken for another's
        save_json(note, {**wanted, "fingerprint": trained.fingerprint}, seal=True)
        with tempfile.TemporaryDirectory(dir=folder) as fresh:
            trained.save(fresh)
            for file in sorted(Path(fresh).iterdir()):
                os.replace(file, folder / file.name)
    return trained, False


def _byte_characters() -> list[str]:
    """The printable character that byte-level tokenisers write for each byte (the table of GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(N_BYTES, 2 * N_BYTES))
    return [chr(byte) if byte in printable else chr(next(rest)) for byte in range(N_BYTES)]


def _byte_level(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(merges))
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (BOS, EOS, PAD)])
    # who asks for special tokens gets what the model was trained on: a document starts with bos
    bos = backend.token_to_id(BOS)
    assert bos is not None  # it was added above
    backend.post_processor = _bos_first(bos)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def _bos_first(bos: int) -> Any:
    from tokenizers import processors

    return processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, bos)])


def _wrap(hf: Any, name: str) -> Tokenizer:
    eos = hf.eos_token_id
    if eos is None:
        raise CurationError(f"tokenizer {name!r} has no end-of-text token; set eos_token in its tokenizer_config.json")
    bos = hf.bos_token_id if hf.bos_token_id is not None else eos
    pad = hf.pad_token_id if hf.pad_token_id is not None else eos
    backend = hf.backend_tokenizer
    rules = json.loads(backend.to_str())
    for volatile in ("truncation", "padding"):  # settings of the last call, not of the tokeniser
        rules.pop(volatile, None)
    if (hf.bos_token, hf.eos_token, hf.pad_token) == (BOS, EOS, PAD):  # `export` changes this, but not the tokens
        rules["post_processor"] = json.loads(_bos_first(bos).__getstate__())
    content = json.dumps([rules, bos, eos], sort_keys=True)
    fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()
    plain_bytes = _is_plain_bytes(rules)

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        if plain_bytes:  # id b is byte b
            return [np.frombuffer(text.encode(), np.uint8).astype(np.int64) for text in texts]
        backend.no_truncation()
        backend.no_padding()
        kept, backend.encode_special_tokens = backend.encode_special_tokens, True  # "<|eos|>" in a text is just text
        try:
            encoded = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        finally:
            backend.encode_special_tokens = kept
        return [np.asarray(item.ids, np.int64) for item in encoded]

    return Tokenizer(name, len(hf), bos, eos, pad, fingerprint, encode, hf)


def _is_plain_bytes(rules: dict[str, Any]) -> bool:
    model = rules["model"]
    expected = {character: byte for byte, character in enumerate(_byte_characters())}
    return model.get("type") == "BPE" and not model.get("merges") and model.get("vocab") == expected
