"""Tokenise, pack and train a small LLaMA-style language model on a curated subset of a text pool.

In the order of the work, as functions and as ``python -m text_lm`` commands:
documents -> passages (filters) -> dedup -> split -> embed -> [curation: cluster, sample] -> tokenizer -> tokens ->
packing -> train (settings, model, loss) -> perplexity.
Read first: packing.py (what a training sequence is, which ones make a step), train.py (a whole run and its step).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import foundation  # noqa: F401 - before torch is loaded: it sets how threads wait

if TYPE_CHECKING:
    from text_lm.documents import read_documents
    from text_lm.model import ModelSettings
    from text_lm.perplexity import evaluate_perplexity
    from text_lm.settings import TrainSettings
    from text_lm.tokenizer import open_tokenizer
    from text_lm.tokens import TokenStore, tokenise_pool
    from text_lm.train import train

# names are loaded when they are first used: transformers and Lightning take seconds to import
_HOMES = {
    "ModelSettings": "text_lm.model",
    "TokenStore": "text_lm.tokens",
    "TrainSettings": "text_lm.settings",
    "evaluate_perplexity": "text_lm.perplexity",
    "open_tokenizer": "text_lm.tokenizer",
    "read_documents": "text_lm.documents",
    "tokenise_pool": "text_lm.tokens",
    "train": "text_lm.train",
}

__all__ = [
    "ModelSettings",
    "TokenStore",
    "TrainSettings",
    "evaluate_perplexity",
    "open_tokenizer",
    "read_documents",
    "tokenise_pool",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'text_lm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
