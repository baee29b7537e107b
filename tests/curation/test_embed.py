"""`embed_pool`: every embedding belongs to a known pool row, bad pictures are named, and a kill loses no work."""

import io
import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Image
from PIL import Image as PillowImage
from warm import Server

from curation.cli import main
from curation.embedding.embed import embed_pool
from curation.embedding.embedders import Embedder, open_embedder
from curation.embedding.small_pictures import median_side
from curation.embedding.text_embedders import embed_any
from curation.store.embeddings import open_embeddings
from foundation.errors import CurationError

BROKEN = [3, 17, 18, 41, 59]


def to_tensor(image: PillowImage.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.resize((4, 4)), dtype=np.float32)).permute(2, 0, 1)


def toy_embedder(delay: float = 0.0) -> Embedder:
    """Embeds to (grey, mean grey of the batch): the second shows whether a batch kept its composition."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        time.sleep(delay)
        grey = images.mean(dim=(1, 2, 3))
        return torch.stack([grey, grey.mean().expand(len(grey))], dim=1)

    return Embedder("toy", 2, 4, to_tensor, forward, {"embedder": "toy"})


def toy_pool(n: int = 60, broken: list[int] = BROKEN) -> Dataset:
    rows: list[dict | None] = []
    for i in range(n):
        stream = io.BytesIO()
        PillowImage.new("RGB", (5, 6), (i, i, i)).save(stream, "png")
        rows.append({"bytes": b"broken" if i in broken else stream.getvalue(), "path": None})
    return Dataset.from_dict({"image": rows}).cast_column("image", Image())


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("n_workers", [0, 2])
def test_rows_are_aligned_and_unreadable_images_named(tmp_path, n_workers):
    result = embed_pool(toy_pool(), toy_embedder(), tmp_path, batch_size=7, n_workers=n_workers, progress=False)
    rows = np.load(tmp_path / "row_ids.npy")
    assert rows.dtype == np.int64
    assert rows.tolist() == [i for i in range(60) if i not in BROKEN]
    np.testing.assert_array_equal(open_embeddings(tmp_path).block(0, 60)[:, 0].numpy(), rows)
    assert result.n_rows == 55
    assert list(result.skipped) == BROKEN
    info = json.loads((tmp_path / "embeddings.json").read_text())
    assert [int(row) for row in info["skipped"]] == BROKEN
    assert all("UnidentifiedImageError" in reason for reason in info["skipped"].values())


CHILD = """
import sys
sys.path[:0] = {tests!r}
from test_embed import embed_pool, toy_embedder, toy_pool
embed_pool(toy_pool(), toy_embedder(0.1), {folder!r}, batch_size=4, n_workers=0, rows_per_shard=10, progress=False)
"""


def test_killed_run_resumes_to_the_same_bytes(tmp_path, warm: Server):
    """Days of embedding must survive a kill, and the result must not depend on where it struck."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    embed_pool(toy_pool(), toy_embedder(), whole, batch_size=4, n_workers=0, rows_per_shard=10, progress=False)

    here = Path(__file__).parent
    child = warm.start("-c", CHILD.format(tests=[str(here), str(here.parent)], folder=str(killed)))
    try:
        deadline = time.monotonic() + 120
        while not (killed / "shard-00002.npy").exists() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        child.kill()
        child.wait()
    before = files(killed)
    assert "shard-00002.npy" in before  # so that embeddings.json knows at least the two shards before it
    assert "row_ids.npy" not in before, "the child was to die before it finished"
    with pytest.raises(CurationError, match="not finished"):
        open_embeddings(killed)

    embedded = []

    def counting(images: torch.Tensor) -> torch.Tensor:
        embedded.append(len(images))
        return toy_embedder().forward(images)

    resumed = Embedder("toy", 2, 4, to_tensor, counting, {"embedder": "toy"})
    result = embed_pool(toy_pool(), resumed, killed, batch_size=4, n_workers=0, rows_per_shard=10, progress=False)
    assert files(killed) == files(whole)
    assert list(result.skipped) == BROKEN
    assert sum(embedded) < 55 - 10, "whole shards must not be embedded again"


@pytest.mark.parametrize("stop_after", range(1, 15))
def test_resume_is_exact_wherever_the_run_stopped(tmp_path, stop_after):
    """Shard borders fall inside batches and next to broken images: none of them may shift a row."""
    calls = 0

    def stopping(images: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > stop_after:
            raise KeyboardInterrupt
        return toy_embedder().forward(images)

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = {"batch_size": 4, "n_workers": 0, "rows_per_shard": 6, "progress": False}
    embed_pool(toy_pool(), toy_embedder(), whole, **options)
    with pytest.raises(KeyboardInterrupt):
        embed_pool(toy_pool(), Embedder("toy", 2, 4, to_tensor, stopping, {"embedder": "toy"}), cut, **options)
    log = cut / "skipped.jsonl"
    log.write_text(log.read_text() + '[55, "a torn li')
    (cut / ".embeddings.json.123.tmp").write_text("a torn write")
    embed_pool(toy_pool(), toy_embedder(), cut, **options)
    assert files(cut) == files(whole)


def test_finished_run_is_not_done_again(tmp_path):
    first = embed_pool(toy_pool(), toy_embedder(), tmp_path, n_workers=0, progress=False)

    def never(images: torch.Tensor) -> torch.Tensor:
        raise AssertionError("embedded again")

    again = Embedder("toy", 2, 4, to_tensor, never, {"embedder": "toy"})
    assert embed_pool(toy_pool(), again, tmp_path, n_workers=0, progress=False) == first


def test_folder_of_another_pool_or_embedder_is_refused(tmp_path):
    embed_pool(toy_pool(), toy_embedder(), tmp_path, n_workers=0, progress=False)
    with pytest.raises(CurationError, match="pool_"):
        embed_pool(toy_pool(59), toy_embedder(), tmp_path, n_workers=0, progress=False)
    other = Embedder("other", 2, 4, to_tensor, toy_embedder().forward, {"embedder": "other"})
    with pytest.raises(CurationError, match="embedder='toy'"):
        embed_pool(toy_pool(), other, tmp_path, n_workers=0, progress=False)


def test_pool_without_readable_images_is_refused(tmp_path):
    with pytest.raises(CurationError, match="none of the 3 images can be read; the first, row 0"):
        embed_pool(toy_pool(3, [0, 1, 2]), toy_embedder(), tmp_path, n_workers=0, progress=False)
    assert not (tmp_path / "row_ids.npy").exists()
    with pytest.raises(CurationError, match="no image column 'image'; it has text"):
        embed_pool(Dataset.from_dict({"text": ["a"]}), toy_embedder(), tmp_path / "text", progress=False)


def test_nan_of_the_network_names_the_pool_row(tmp_path):
    def forward(images: torch.Tensor) -> torch.Tensor:
        grey = images.mean(dim=(1, 2, 3))
        return torch.where(grey == 20, float("nan"), grey)[:, None].expand(-1, 2)

    bad = Embedder("bad", 2, 4, to_tensor, forward, {"embedder": "bad"})
    with pytest.raises(CurationError, match="pool row 20"):
        embed_pool(toy_pool(), bad, tmp_path, n_workers=0, progress=False)


def test_efficientnet_lite0_keeps_alike_pictures_together():
    """Real weights are loaded: a picture lies nearer to its shifted copy than to other pictures."""
    embedder = open_embedder("efficientnet_lite0", image_size=64, device="cpu")
    assert embedder.dim == 1280
    generator = np.random.default_rng(0)
    small = [PillowImage.fromarray(generator.integers(0, 255, (5, 5, 3), dtype=np.uint8)) for _ in range(6)]
    pictures = [image.resize((80, 80), PillowImage.Resampling.BICUBIC) for image in small]
    shifted = [image.crop((4, 4, 80, 80)) for image in pictures]
    batch = torch.stack([embedder.transform(image) for image in pictures + shifted])
    features = torch.nn.functional.normalize(embedder.forward(batch), dim=1)
    nearest = (features[:6] @ features[6:].T).argmax(dim=1)
    assert nearest.tolist() == list(range(6))


@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit"])
def test_random_weights_only_on_request_and_repeatable(name):
    first = open_embedder(f"{name}?pretrained=false", image_size=96, device="cpu")
    second = open_embedder(f"{name}?pretrained=false", image_size=96, device="cpu")
    assert first.identity == second.identity
    batch = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    out = first.forward(batch)
    assert out.shape == (2, first.dim)
    assert out.dtype == torch.float32
    assert torch.equal(out, second.forward(batch))


def test_checkpoint_gives_the_features_of_the_saved_network(tmp_path):
    import timm

    torch.manual_seed(1)
    model = timm.create_model("test_vit", pretrained=False, num_classes=7).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    embedder = open_embedder(f"checkpoint:{tmp_path}", device="cpu")
    batch = torch.randn(2, 3, embedder.image_size, embedder.image_size)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(batch), pre_logits=True)
    torch.testing.assert_close(embedder.forward(batch), expected)

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architecture": "test_resnet"}))
    with pytest.raises(CurationError, match="does not fit"):
        open_embedder(f"checkpoint:{tmp_path}")


def test_a_timm_model_takes_the_weights_of_a_file_and_asks_no_network(tmp_path, monkeypatch):
    import socket

    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = timm.create_model("test_vit", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    embedder = open_embedder(f"timm:test_vit?weights={tmp_path}/weights.safetensors", device="cpu")
    batch = torch.randn(2, 3, embedder.image_size, embedder.image_size)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(batch), pre_logits=True)
    torch.testing.assert_close(embedder.forward(batch), expected)
    with pytest.raises(CurationError, match="does not fit timm:test_resnet"):
        open_embedder(f"timm:test_resnet?weights={tmp_path}/weights.safetensors", device="cpu")


def test_missing_weights_are_an_error_never_random(monkeypatch):
    import timm
    import torchvision

    def offline(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr(torchvision.models, "get_model", offline)
    for name in ("timm:resnet18", "torchvision:resnet18"):
        with pytest.raises(CurationError, match=rf"cannot get the weights of {name} \(Name or service not known\)"):
            open_embedder(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet18", "is unknown; use timm:NAME"),
        ("timm:no_such_net", "timm has no model"),
        ("torchvision:no_such_net", "torchvision has no image model"),
        ("timm:resnet18?seed=1", "the options are"),
        ("torchvision:resnet18?weights=x.safetensors", "are for timm:NAME alone"),
        ("timm:resnet18?weights=x.pth", r"no \.safetensors file"),
        ("checkpoint:nowhere.safetensors", r"no \.safetensors file"),
    ],
)
def test_wrong_names_say_what_to_use(name, message):
    with pytest.raises(CurationError, match=message):
        open_embedder(name)


@pytest.mark.parametrize(
    ("name", "image_size", "said"),
    [
        ("timm:test_vit?pretrained=false", None, []),  # takes 160 pixels
        ("timm:resnet10t?pretrained=false", 96, []),
        (
            "timm:resnet18?pretrained=false",
            None,
            [
                "small pictures (median side 5 pixels) are enlarged to 224: --image-size 96 takes 1/5 of the "
                "operations, and is often as good"
            ],
        ),
    ],
)
def test_small_pictures_that_are_enlarged_in_vain_are_told_of(
    name: str, image_size: int | None, said: list[str], tmp_path: Path
):
    lines: list[str] = []
    embed_any(toy_pool(4, []), name, tmp_path, image_size, device="cpu", progress=False, say=lines.append, n_workers=0)
    assert lines == said


def test_the_side_of_pictures_is_that_of_the_readable_ones():
    assert median_side(toy_pool()) == 5
    assert median_side(toy_pool(3, [0, 1, 2])) == 0


def test_an_unknown_embedder_is_refused_before_the_first_page(tmp_path: Path):
    pool, out = tmp_path / "pool.parquet", tmp_path / "out"
    toy_pool(40, []).to_parquet(pool)
    with pytest.raises(SystemExit):
        main(["run", str(pool), "-o", str(out), "--size", "10", "--embedder", "efficientnet"])
    assert not (out / "pool.html").exists()
