"""The language model: a Hugging Face `LlamaForCausalLM` built from a few numbers, and what it costs."""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from foundation.errors import CurationError
from foundation.files import check_export, check_json
from foundation.hub import hub_within_reach
from foundation.schema import check_content
from foundation.settings import CountOrZero, Positive, Range, check
from foundation.weights import load_whole

TOKENIZERS = "tokenizer_fingerprints"  # key in the ``config.json`` of a model: those that it was trained with
ATTENTION = ("sdpa", "flex_attention", "flash_attention_2")


@dataclass(frozen=True)
class ModelSettings:
    """Shape of a LLaMA-style decoder (Touvron et al. 2023): pre-RMSNorm, rotary positions, SwiGLU, no biases.

    Attributes:
        width: hidden size; a multiple of 2 x heads.
        layers: transformer blocks.
        heads: attention heads.
        kv_heads: key-value heads of grouped queries; 0 takes `heads`.
        ffn: inner width of the SwiGLU; 0 takes 8/3 width, rounded up to a multiple of 64.
        context: longest sequence.
        rope_theta: base of the rotary frequencies.
        tied: one matrix for input and output embeddings.
        vocab_multiple: the vocabulary is padded up to a multiple of this, which is faster on a GPU.
        init_std: standard deviation of the initial weights.
        residual_init: divide the initial weights of the layers that write into the residual stream by
            sqrt(2 layers) (Radford et al. 2019).
    """

    width: Annotated[int, Range(ge=1, le=1 << 20)] = 128
    layers: Annotated[int, Range(ge=1, le=1000)] = 4
    heads: Annotated[int, Range(ge=1, le=1 << 16)] = 4
    kv_heads: CountOrZero = 0
    ffn: Annotated[int, Range(ge=0, le=1 << 22)] = 0
    context: Annotated[int, Range(ge=1, le=1 << 24)] = 256
    rope_theta: Positive = 10_000.0
    tied: bool = True
    vocab_multiple: Annotated[int, Range(ge=1, le=1 << 20)] = 64
    init_std: Positive = 0.02
    residual_init: bool = True

    def __post_init__(self) -> None:
        check(self, "model")
        if self.width % (2 * self.heads):
            raise CurationError(f"model.width {self.width} must be a multiple of 2 x heads = {2 * self.heads}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise CurationError(f"model.kv_heads {self.kv_heads} must divide model.heads {self.heads}")

    @property
    def ffn_width(self) -> int:
        return self.ffn or -(-(8 * self.width // 3) // 64) * 64


def build_model(settings: ModelSettings, tokenizer: Any, seed: int, attention: str = "sdpa") -> Any:
    """A freshly initialised float32 `LlamaForCausalLM` for a tokeniser.

    Args:
        settings: its shape.
        tokenizer: a `text_lm.tokenizer.Tokenizer`; the vocabulary and special tokens come from it.
        seed: of the initial weights; the global random state is left alone.
        attention: "sdpa", "flex_attention" or "flash_attention_2".
    """
    from transformers import LlamaForCausalLM

    if attention not in ATTENTION:
        raise CurationError(f"attention {attention!r} is unknown; use {', '.join(ATTENTION)}")
    config = llama_config(settings, tokenizer.vocab_size, tokenizer.bos, tokenizer.eos, tokenizer.pad)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model = LlamaForCausalLM._from_config(config, attn_implementation=attention)
        except ImportError as error:
            raise CurationError(f"attention {attention!r} is not installed ({error}); use sdpa") from error
    if settings.residual_init:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    parameter.div_((2 * settings.layers) ** 0.5)
    return model


def llama_config(settings: ModelSettings, vocab_size: int, bos: int, eos: int, pad: int) -> Any:
    """The Hugging Face configuration of a shape."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=-(-vocab_size // settings.vocab_multiple) * settings.vocab_multiple,
        hidden_size=settings.width,
        intermediate_size=settings.ffn_width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads or settings.heads,
        max_position_embeddings=settings.context,
        rope_parameters={"rope_type": "default", "rope_theta": settings.rope_theta},
        tie_word_embeddings=settings.tied,
        initializer_range=settings.init_std,
        rms_norm_eps=1e-5,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def load_model(folder: str | Path, tokenizer: Any | None = None, attention: str = "sdpa") -> Any:
    """Load a causal language model from an ordinary Hugging Face folder (or Hub name), in float32.

    Args:
        tokenizer: refuse a model whose vocabulary is too small for it.

    Raises:
        CurationError: nothing to load there, or the vocabularies do not match.
    """
    from transformers import AutoModelForCausalLM

    if Path(folder).is_dir():
        check_export(Path(folder).parent, Path(folder).name)
    try:
        with warnings.catch_warnings(), nullcontext() if Path(folder).is_dir() else hub_within_reach():
            warnings.simplefilter("ignore")
            check_json(folder)
            options = {"dtype": torch.float32, "attn_implementation": attention, "use_safetensors": True}
            model = load_whole(AutoModelForCausalLM.from_pretrained, str(folder), **options)
    except CurationError:
        raise
    except Exception as error:  # transformers raises many kinds, with pages of text
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CurationError(f"model {folder} cannot be loaded ({reason}); give a Hugging Face folder") from error
    if tokenizer is not None:
        check_vocabulary(model, tokenizer)
    return model


def check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Refuse a tokeniser that is not the model's, as far as that is known.

    Raises:
        CurationError: it has ids that the model does not have, ends texts with another, or was not trained with.
    """
    known = getattr(model.config, TOKENIZERS, None)
    check_content(list[str] | None, known, f"{TOKENIZERS} of the model", "mend its config.json")
    if known is not None and tokenizer.fingerprint not in known:
        raise CurationError(
            f"tokenizer {tokenizer.name!r} is not the one that the model was trained with; open that one"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise CurationError(
            f"tokenizer {tokenizer.name!r} has {tokenizer.vocab_size} tokens but the model has {rows}; "
            "open the tokenizer that lies beside the model"
        )
    eos = getattr(model.config, "eos_token_id", None)
    known = eos if isinstance(eos, list) else [eos]
    if eos is not None and tokenizer.eos not in known:
        raise CurationError(
            f"tokenizer {tokenizer.name!r} ends a text with token {tokenizer.eos} but the model with {eos}; "
            "open the tokenizer that lies beside the model"
        )


def document_mask(documents: Int[Tensor, "b t"]) -> Bool[Tensor, "b 1 t t"]:
    """True where a token (row) may look: at itself and earlier tokens of its own document."""
    same = documents[:, :, None] == documents[:, None, :]
    length = documents.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents.device).tril()
    return (same & causal)[:, None]


def next_token_logits(
    model: Any,
    inputs: Int[Tensor, "b t"],
    documents: Int[Tensor, "b t"] | None = None,
    positions: Int[Tensor, "b t"] | None = None,
) -> Float[Tensor, "b t v"]:
    """Logits of the token that follows each input.

    Args:
        documents: attention stays within equal values; None lets every token see all before it.
        positions: distance from the document's start, which goes with ``documents``.
    """
    if documents is None:
        return model(input_ids=inputs, use_cache=False).logits
    # the other kernels find the documents in the positions, which restart at 0, and never build the square mask
    mask = document_mask(documents) if model.config._attn_implementation == "sdpa" else None
    return model(input_ids=inputs, attention_mask=mask, position_ids=positions, use_cache=False).logits


def count_parameters(settings: ModelSettings, vocab_size: int) -> int:
    """Weights of the model, tied matrices once; needs no memory."""
    padded = -(-vocab_size // settings.vocab_multiple) * settings.vocab_multiple
    head = settings.width // settings.heads
    kv_width = (settings.kv_heads or settings.heads) * head
    attention = 2 * settings.width * (settings.heads * head) + 2 * settings.width * kv_width
    block = attention + 3 * settings.width * settings.ffn_width + 2 * settings.width
    embeddings = padded * settings.width * (1 if settings.tied else 2)
    return settings.layers * block + settings.width + embeddings


def flops_per_token(settings: ModelSettings, vocab_size: int, length: int) -> float:
    """FLOPs of training on one token, forward and backward.

    6 per weight that multiplies (all but the input embeddings) and 12 x layers x width x length for attention as if
    it were not causal: the convention of PaLM (Chowdhery et al. 2022, appendix B), so that MFU compares.
    """
    padded = -(-vocab_size // settings.vocab_multiple) * settings.vocab_multiple
    weights = count_parameters(settings, vocab_size)
    lookups = 0 if settings.tied else padded * settings.width
    return 6.0 * (weights - lookups) + 12.0 * settings.layers * settings.width * length
