"""Two models taken for one: embeddings of both would lie in one folder."""

import torch

from foundation.weights import weights_digest


def test_weights_are_told_apart_by_every_byte_name_and_type():
    weights = {"a": torch.randn(300, 200), "b": torch.zeros(())}
    known = weights_digest(weights)
    assert weights_digest({name: values.clone() for name, values in weights.items()}) == known
    swapped = weights | {"a": torch.cat([weights["a"][:2].flip(0), weights["a"][2:]])}  # the same sum
    others = [swapped, {"c": weights["a"], "b": weights["b"]}, weights | {"b": torch.zeros((), dtype=torch.float64)}]
    assert known not in [weights_digest(other) for other in others]
    assert len(weights_digest(weights, 8)) == 16
