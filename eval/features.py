"""Features of a dataset, computed once: class tokens of the last blocks and the mean patch token, as arrays on disk."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from eval.images import BadImages, LabelledImages, Transform, read_batches
from eval.models import FrozenModel, block_features
from foundation.errors import CurationError
from foundation.files import checksums_are_verified, whole_file
from foundation.paths import regular_file
from foundation.weights import weights_digest

FORMAT = 1


@dataclass
class FeatureSet:
    """Features of the readable images of a dataset.

    Attributes:
        cls: (n, d) of each of the last blocks, the last block last.
        mean_patch: (n, d) mean patch token of the last block, or None.
        labels: (n,) class indices.
        rows: (n,) which image of the dataset each row is.
        skipped: id of each unreadable image to its reason.
        seconds: that the features took; 0 where they came from the cache.
    """

    cls: list[Float[Tensor, "n d"]]
    mean_patch: Float[Tensor, "n d"] | None
    labels: Int[Tensor, "n"]
    rows: Int[Tensor, "n"]
    skipped: dict[str, str]
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.labels)

    def pooled(self, blocks: int = 1, mean_patch: bool = False, rows: Int[Tensor, "b"] | None = None) -> Tensor:
        """Class tokens of the last ``blocks`` blocks side by side, and the mean patch token: (n, features) float32.

        Raises:
            CurationError: more blocks than were kept, or the model has no patches.
        """
        if not 1 <= blocks <= len(self.cls):
            raise CurationError(f"{blocks} blocks are asked for, but {len(self.cls)} were kept")
        parts = list(self.cls[-blocks:])
        if mean_patch:
            if self.mean_patch is None:
                raise CurationError("this model gives no patch tokens to average")
            parts.append(self.mean_patch)
        return torch.cat([part if rows is None else part[rows] for part in parts], 1).float()

    def inputs(self, rows: Int[Tensor, "b"]) -> dict[str, Float[Tensor, "b _"]]:
        """The inputs of the linear sweep of DINOv2: {1, 4} blocks x {class tokens, with mean patch}."""
        found = {}
        for blocks in sorted({1, len(self.cls)}):
            found[f"cls of {blocks}"] = self.pooled(blocks, False, rows)
            if self.mean_patch is not None:
                found[f"cls of {blocks} + patches"] = self.pooled(blocks, True, rows)
        return found


def extract(
    model: FrozenModel,
    images: LabelledImages,
    cache: str | Path | None = None,
    *,
    batch_size: int = 64,
    n_workers: int = 0,
    transform: Transform | None = None,
    max_bad: float = 0.01,
    dtype: str = "float32",
    progress: bool = False,
) -> FeatureSet:
    """Features of every readable image, from the cache where they are already there.

    Args:
        cache: folder; a file there is named by the digest of model, images and transform, and written whole or not.
        transform: instead of the model's own; one that is not the model's must name itself (``identity`` attribute)
            to be cached.
        max_bad: share of the images that may be unreadable.
        dtype: in which features are kept: "float32" or "float16" (half the memory).

    Raises:
        CurationError: too many bad images, none readable, or NaN from the model.
    """
    import time

    if dtype not in ("float32", "float16"):
        raise CurationError(f"features can be kept as float32 or float16, not {dtype!r}")
    how = "own" if transform is None else getattr(transform, "identity", None)
    key = hashlib.blake2b(
        json.dumps([FORMAT, model.identity, images.digest, how, dtype]).encode(), digest_size=16
    ).hexdigest()
    path = Path(cache) / f"{key}.safetensors" if cache is not None and how is not None else None
    if path is not None and path.exists():
        return _load(path, images)
    start = time.perf_counter()
    bad = BadImages(max_bad)
    kept: list[Tensor] = []
    rows: list[Tensor] = []
    mean: list[Tensor] = []
    keep = getattr(torch, dtype)
    batches = read_batches(images, transform or model.transform, batch_size, n_workers, bad)
    bar = tqdm(total=len(images), desc=f"features of {images.name}", unit="img", disable=None if progress else True)
    with torch.inference_mode():
        for which, batch in batches:
            found = block_features(model.features(batch), len(batch))
            tokens = torch.stack([x.float() for x in found.cls], 1).cpu()
            if not torch.isfinite(tokens).all():
                raise CurationError(
                    f"{model.identity} gave NaN or infinity for {images.ids[int(which[0])]} or one of the "
                    f"{len(which) - 1} images after it; the checkpoint is broken, or try precision=float32"
                )
            kept.append(tokens.to(keep))
            if found.patches is not None:
                mean.append(found.patches.float().mean(1).cpu().to(keep))
            rows.append(which)
            bar.update(len(which))
    bar.close()
    if not rows:
        raise CurationError(f"{images.name}: not one image can be read")
    order = torch.cat(rows)
    stacked = torch.cat(kept)
    features = FeatureSet(
        [stacked[:, block].clone() for block in range(stacked.shape[1])],
        torch.cat(mean) if mean else None,
        images.labels[order],
        order,
        bad.reasons,
        time.perf_counter() - start,
    )
    if path is not None:
        _save(path, features)
    return features


def streamed(
    model: FrozenModel,
    images: LabelledImages,
    order: Int[Tensor, "m"],
    transform: Transform,
    batch_size: int,
    n_workers: int = 0,
    max_bad: float = 0.01,
) -> Iterator[tuple[dict[str, Float[Tensor, "b _"]], Int[Tensor, "b"]]]:
    """Batches of (inputs of the linear sweep, labels) computed on the fly: the linear probe with augmentation.

    Args:
        order: rows of the dataset, as they shall come; a row may come several times.
    """
    for which, batch in read_batches(images, transform, batch_size, n_workers, BadImages(max_bad), order):
        with torch.inference_mode():
            found = block_features(model.features(batch), len(batch))
            mean = None if found.patches is None else found.patches.float().mean(1)
            labels = images.labels[which]
            part = FeatureSet(found.cls, mean, labels, which, {})
            inputs = part.inputs(torch.arange(len(which), device=found.cls[0].device))
        yield {name: x.clone() for name, x in inputs.items()}, labels


def _save(path: Path, features: FeatureSet) -> None:
    from safetensors.torch import save_file

    tensors = {f"cls_{i}": x.contiguous() for i, x in enumerate(features.cls)}
    tensors |= {"labels": features.labels, "rows": features.rows}
    if features.mean_patch is not None:
        tensors["mean_patch"] = features.mean_patch.contiguous()
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata={"skipped": json.dumps(features.skipped), "digest": _digest(tensors)})


def _digest(tensors: dict[str, Tensor]) -> str:
    """Checksum of names and values, in any order, for safetensors have none."""
    return weights_digest(dict(sorted(tensors.items())))


def _load(path: Path, images: LabelledImages) -> FeatureSet:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(regular_file(path), framework="pt") as stored:
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
            skipped = json.loads(stored.metadata()["skipped"])
            found = _digest(tensors) if checksums_are_verified() else None
            if found is not None and stored.metadata().get("digest", found) != found:
                raise ValueError("its values are not those that were written")
        rows, labels = tensors["rows"], tensors["labels"]
        if not torch.equal(labels, images.labels[rows]) or any(len(x) != len(rows) for x in tensors.values()):
            raise ValueError("its rows and labels are not those of the images")
    except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CurationError(f"cached features {path} cannot be read ({error}); delete the file") from error
    n_blocks = sum(name.startswith("cls_") for name in tensors)
    cls = [tensors[f"cls_{i}"] for i in range(n_blocks)]
    return FeatureSet(cls, tensors.get("mean_patch"), tensors["labels"], tensors["rows"], skipped)
