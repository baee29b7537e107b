"""How well a language model predicts held-out documents: bits per byte and perplexity, per domain and summed up."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tqdm import tqdm

from foundation.devices import open_device
from foundation.errors import CurationError
from foundation.schema import check_content
from foundation.settings import Count
from text_lm.model import check_vocabulary
from text_lm.tokenizer import Tokenizer

MEASURES = ("bits_per_byte", "perplexity")


@dataclass(frozen=True)
class TextScores:
    """Scores of n texts.

    Attributes:
        nats: (n,) float64 negative log-likelihood of the text's tokens given bos; the end of text is not scored.
        n_tokens: (n,) int64 tokens scored.
        n_bytes: (n,) int64 UTF-8 bytes.
    """

    nats: Float[np.ndarray, "n"]
    n_tokens: Int[np.ndarray, "n"]
    n_bytes: Int[np.ndarray, "n"]


@dataclass(frozen=True)
class DomainScore:
    """A domain's texts taken together: sums over texts, then the quotient.

    Attributes:
        bits_per_byte: nats / (bytes ln 2): compares models of different tokenisers.
        perplexity: exp(nats / tokens): compares models of one tokeniser.
    """

    n_texts: int
    n_tokens: int
    n_bytes: int
    bits_per_byte: float
    perplexity: float


def score_texts(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    length: int | None = None,
    stride: int | None = None,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
    progress: bool = False,
) -> TextScores:
    """Score texts of any length in windows; every token is scored once.

    Args:
        model: a Hugging Face causal language model.
        length: tokens per window; None takes the model's context.
        stride: tokens from one window to the next. None takes ``length``, which is fast and what the rolling
            log-likelihood of ``lm_eval`` does (of another tokeniser that adds a bos, it scores that bos as well). A
            smaller one gives each token at least ``length - stride`` tokens of context, where there are any.
        batch_size: windows per forward pass.

        device: "auto", or a torch device.

    Raises:
        CurationError: the tokeniser is not the model's, a setting is bad, or the model gives a loss that is not finite.
    """
    check_vocabulary(model, tokenizer)
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None:
        check_content(Count, context, "max_position_embeddings of the model", "mend its config.json")
    length = (context or 1024) if length is None else length
    stride = length if stride is None else stride
    if length < 1 or (context and length > context):
        raise CurationError(f"length {length} must lie in 1..{context}, the model's context")
    if not 1 <= stride <= length:
        raise CurationError(f"stride {stride} must lie in 1..{length}, the length of a window")
    if batch_size < 1:
        raise CurationError(f"batch_size {batch_size} must be at least 1 window")
    encoded = [np.concatenate([[tokenizer.bos], ids]) for ids in tokenizer.encode(texts)]
    windows = []  # (text, first input, first position whose target has not been scored)
    for text, ids in enumerate(encoded):
        start = scored = 0
        while scored < len(ids) - 1:
            begin = min(start, max(len(ids) - 1 - length, 0))  # the last window takes all the context it can
            windows.append((text, begin, scored - begin))
            scored = min(start + length, len(ids) - 1)
            start += stride
    windows.sort(key=lambda window: len(encoded[window[0]]) - window[1])  # like lengths together: little padding

    nats = np.zeros(len(texts))
    was_training = model.training
    device = open_device(device)
    model.eval().to(device)
    with torch.inference_mode():
        for first in tqdm(range(0, len(windows), batch_size), unit=" batches", desc="score", disable=not progress):
            batch = windows[first : first + batch_size]
            pieces = [encoded[text][start : start + length + 1] for text, start, _ in batch]
            width = max(len(piece) for piece in pieces) - 1
            inputs = np.full((len(batch), width), tokenizer.pad, np.int64)
            targets = np.full((len(batch), width), -100, np.int64)
            for i, (piece, (_, _, skip)) in enumerate(zip(pieces, batch, strict=True)):
                inputs[i, : len(piece) - 1] = piece[:-1]
                targets[i, skip : len(piece) - 1] = piece[1 + skip :]
            # attention is causal: what is padded on the right changes nothing on its left
            logits = model(input_ids=torch.from_numpy(inputs).to(device), use_cache=False).logits.float()
            wanted = torch.from_numpy(targets).to(device)
            losses = F.cross_entropy(logits.transpose(1, 2), wanted, ignore_index=-100, reduction="none")
            np.add.at(nats, [text for text, _, _ in batch], losses.double().sum(dim=1).cpu().numpy())
    model.train(was_training)
    if not np.isfinite(nats).all():
        bad = int(np.flatnonzero(~np.isfinite(nats))[0])
        raise CurationError(f"the model's loss on text {bad} is {nats[bad]}; its weights are damaged or diverged")
    n_tokens = np.asarray([len(ids) - 1 for ids in encoded], np.int64)
    return TextScores(nats, n_tokens, np.asarray([len(text.encode()) for text in texts], np.int64))


def score_domains(scores: TextScores, domains: Sequence[str]) -> dict[str, DomainScore]:
    """Scores of each domain, in the order of their names; a domain without a byte of text is left out."""
    names, index = np.unique(np.asarray(domains, dtype=str), return_inverse=True)
    if len(index) != len(scores.nats):
        raise CurationError(f"there are {len(scores.nats)} texts but {len(index)} domains")
    nats, tokens, n_bytes = (
        np.bincount(index, weights=column, minlength=len(names))
        for column in (scores.nats, scores.n_tokens, scores.n_bytes)
    )
    texts = np.bincount(index, minlength=len(names))
    return {
        str(name): DomainScore(
            int(texts[i]),
            int(tokens[i]),
            int(n_bytes[i]),
            float(nats[i] / n_bytes[i] / np.log(2)),
            float(np.exp(nats[i] / tokens[i])),
        )
        for i, name in enumerate(names)
        if n_bytes[i]
    }


def summarise(
    domains: dict[str, DomainScore], raw_shares: dict[str, float], measure: str = "bits_per_byte", tail: float = 1 / 3
) -> dict[str, Any]:
    """One number each for what a comparison of data asks.

    Args:
        domains: from `score_domains`.
        raw_shares: how much of the raw pool each domain is; any positive scale.
        measure: "bits_per_byte" or "perplexity"; the means are arithmetic means of it over domains.
        tail: share of the domains, by number, that counts as tail (the rarest in the raw pool) and as head.

    Returns:
        ``macro`` (every domain alike), ``worst`` and ``worst_domain``, ``head``, ``tail``, and ``raw_weighted``
        (domains weigh what they weigh in the raw pool: the measure that training on raw data itself favours).
    """
    if measure not in MEASURES:
        raise CurationError(f"measure {measure!r} is unknown; use {', '.join(MEASURES)}")
    if not domains:
        raise CurationError("no domain has any text to score")
    missing = sorted(set(domains) - set(raw_shares))
    if missing:
        raise CurationError(f"raw_shares lacks domain {missing[0]!r}; give the share of every held-out domain")
    names = sorted(domains, key=lambda name: (-raw_shares[name], name))
    values = np.asarray([getattr(domains[name], measure) for name in names])
    shares = np.asarray([raw_shares[name] for name in names], float)
    if not (shares >= 0).all() or not shares.sum() > 0:
        raise CurationError("raw_shares must not be negative, and some must be positive")
    n = max(round(tail * len(names)), 1)
    worst = int(values.argmax())
    return {
        "macro": float(values.mean()),
        "worst": float(values[worst]),
        "worst_domain": names[worst],
        "head": float(values[:n].mean()),
        "tail": float(values[-n:].mean()),
        "raw_weighted": float((values * shares).sum() / shares.sum()),
    }


def evaluate_perplexity(
    model: Any,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    domains: Sequence[str],
    raw_shares: dict[str, float],
    **options: Any,
) -> dict[str, Any]:
    """Score held-out texts and sum up: ``{"bits_per_byte": {...}, "perplexity": {...}, "domains": {name: {...}}}``.

    Args:
        options: of `score_texts`.
    """
    found = score_domains(score_texts(model, tokenizer, texts, **options), domains)
    summary = {measure: summarise(found, raw_shares, measure) for measure in MEASURES}
    return {**summary, "domains": {name: vars(score) for name, score in found.items()}}


def seen_in_raw(texts: Sequence[str], raw: Sequence[str]) -> str:
    """What speaks against texts that are in the raw pool, too; "" where none are, or all: that pool was split."""
    known = set(raw)
    n = sum(text in known for text in texts)
    if n in (0, len(texts)):
        return ""
    return (
        f"{n:,} of {len(texts):,} texts are in --raw, too; of a model trained on it they measure memory: "
        "python -m text_lm split leaves them out"
    )


def domain_bytes(texts: Sequence[str], domains: Sequence[str]) -> dict[str, float]:
    """UTF-8 bytes of each domain: the ``raw_shares`` of a raw pool."""
    shares: dict[str, float] = {}
    for text, domain in zip(texts, domains, strict=True):
        shares[str(domain)] = shares.get(str(domain), 0.0) + len((text or "").encode())
    return shares
