"""`python -m pretrain`, `text_lm` and `satellite` under bent settings and files."""

import importlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from safetensors.numpy import load_file

pytest.importorskip("lightning")
pytest.importorskip("rasterio")

import text_lm.cli
import text_lm.train  # noqa: F401 - all imported before a clock runs
from foundation.errors import CurationError
from foundation.settings import fill
from satellite.tiles import load_tiles

sys.path.insert(0, str(Path(__file__).parent))
from hostile_engine import Command, Hostile, bend_calls

RUN = ("batch_size=", "micro_batch_size=", "seed=", "speed.checkpoint_every=", "speed.log_every=", "speed.peak_flops=")


def weights_are_finite(name: str) -> Callable[[Path], None]:
    def valid(folder: Path) -> None:
        found = load_file(folder / "out" / name)
        assert found
        assert all(np.isfinite(value).all() for value in found.values())

    return valid


def tiles_are_whole(folder: Path) -> None:
    assert len(load_tiles(folder / "out.parquet")[0])


VIT = "{patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}"
CPU = ("speed.accelerator=cpu",)
PRETRAIN = ("train", "images", "-o", "out", "steps=2", "batch_size=4", "backbone.name=vit_tiny_patch16_224")
PRETRAIN += (f"backbone.args={VIT}", "crops.global_size=16", "crops.local_size=8", "crops.n_local=1", "collapse=0")
PRETRAIN += ("loss.dino_head={n_prototypes: 8, hidden: 8, bottleneck: 4}", "probe.every=0", *CPU)
TEXT = ("train", "tokens", "-o", "out", "tokens=64", "batch_size=2", "model.width=8", "model.layers=1", *CPU)
TEXT += ("model.heads=1", "model.context=16")
HEIGHTS = ("train", "tiles.parquet", "-o", "out", "steps=2", "batch_size=2", "backbone.name=vit_tiny_patch16_224", *CPU)
HEIGHTS += (f"backbone.args={VIT}", "head.kind=linear", "head.n_bins=8")
FOLDS = ("--block=", "--folds=", "--fold=", "--margin=")
OPTIMISER = ("learning_rate=", "weight_decay=", "clip=")
TILES = ("tiles", "rgb.tif", "--heights", "chm.tif", "-o", "out.parquet", "--size=32")
COMMANDS = {
    "pretrain": Command(
        "pretrain.cli",
        PRETRAIN,
        (
            *(f"optimiser.{name}" for name in (*OPTIMISER[::2], "layer_decay=", "freeze_last_layer=", "final_rate=")),
            *("loss.koleo=", "loss.dino_head.n_prototypes=", "loss.sinkhorn_iterations=", "backbone.drop_path="),
            *("mask.low=", "mask.high=", "probe.every=", "probe.k=", "max_bad=", "collapse=", "speed.cache_gb=", *RUN),
        ),
        ("images/a/0.png",),
        valid=weights_are_finite("teacher/model.safetensors"),
    ),
    "text train": Command(
        "text_lm.cli",
        TEXT,
        (*OPTIMISER, "warmup=", "decay=", "final_lr=", "z_loss=", "eps=", "model.heads=", "model.kv_heads=", *RUN),
        tuple(f"tokens/{name}" for name in ("tokens.json", "tokens.bin", "starts.npy", "rows.npy", "bytes.npy")),
        valid=weights_are_finite("model/model.safetensors"),
    ),
    "text cut": Command(
        "text_lm.cli",
        ("cut", "texts.jsonl", "-o", "out.parquet", "--target=40", "--shortest=5"),
        ("--target=", "--shortest="),
        ("texts.jsonl",),
        ("out.parquet", "out.counts.json"),
    ),
    "text dedup": Command(
        "text_lm.cli",
        ("dedup", "texts.parquet", "-o", "out.parquet"),
        ("--near=",),
        ("texts.parquet",),
        ("out.parquet",),
    ),
    "text split": Command(
        "text_lm.cli",
        ("split", "texts.parquet", "-o", "out", "--share=0.3"),
        ("--share=", "--seed="),
        ("texts.parquet",),
    ),
    "text tokenise": Command("text_lm.cli", ("tokenise", "texts.parquet", "-o", "out"), (), ("texts.parquet",)),
    "text tokenizer": Command(
        "text_lm.cli", ("tokenizer", "texts.parquet", "-o", "out", "--size=262"), ("--size=",), ("texts.parquet",)
    ),
    "text perplexity": Command(
        "text_lm.cli",
        ("perplexity", "run/model", "texts.parquet"),
        ("--stride=", "--batch-size="),
        tuple(f"run/model/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")),
    ),
    "text plan": Command("text_lm.cli", ("plan",), ("--vocab=", "--mfu=", "--gpus=", "tokens=", "batch_size=")),
    "tiles": Command(
        "satellite.cli",
        TILES,
        ("--size=", "--stride=", "--min-valid=", "--resolution="),
        ("rgb.tif", "chm.tif"),
        ("out.parquet",),
        valid=tiles_are_whole,
    ),
    "heights": Command(
        "satellite.cli",
        HEIGHTS,
        (
            *OPTIMISER,
            "warmup=",
            "jitter=",
            "white=",
            "min_valid=",
            "head.n_bins=",
            "head.highest=",
            "loss.sig=",
            *RUN,
            *FOLDS,
        ),
        ("tiles.parquet", "rgb.tif", "chm.tif"),
        valid=weights_are_finite("model/model.safetensors"),
    ),
    "predict": Command(
        "satellite.cli",
        ("predict", "heights/model", "rgb.tif", "-o", "out.tif"),
        ("--overlap=", "--white=", "--batch-size="),
        ("heights/model/config.json", "heights/model/model.safetensors", "rgb.tif"),
        ("out.tif",),
    ),
    "picture pool": Command(
        "satellite.cli", ("pool", "tiles.parquet", "-o", "out.parquet"), ("--white=",), (), ("out.parquet",)
    ),
    "picture": Command(
        "satellite.cli", ("picture", "rgb.tif", "chm.tif", "-o", "out.png"), (), ("rgb.tif", "chm.tif"), ("out.png",)
    ),
}
SLOW = ("pretrain", "text train", "heights", "predict", "tiles", "text perplexity")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from experiments.satellite.scenes import forest_scene, save_scene

    folder, rng = tmp_path_factory.mktemp("world"), np.random.default_rng(0)
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / "images" / name)
    texts = [None, "", *(f"The number {i} is here; its square is {i * i}, and so on it goes." for i in range(20))]
    pool = Dataset.from_dict(
        {"text": texts, "domain": [f"d{i % 2}" for i in range(22)], "source": list("abcdefghijklmnopqrstuv")}
    )
    pool.to_parquet(str(folder / "texts.parquet"))
    pool.select(range(2, 22)).to_json(str(folder / "texts.jsonl"))
    for made, wanted in zip(save_scene(forest_scene(64, 64, seed=1), folder, 0.5), ("rgb.tif", "chm.tif"), strict=True):
        made.rename(folder / wanted)
    tools = Hostile(folder, folder)
    for name, words in (
        ("text tokenise", ("tokenise", "texts.parquet", "-o", "tokens")),
        ("text train", (*TEXT, "-o", "run")),
        ("tiles", (*TILES, "-o", "tiles.parquet")),
        ("heights", (*HEIGHTS, "-o", "heights")),
    ):
        ended = tools.call(COMMANDS[name], words)
        assert ended.code == 0, ended.err
    return folder


@pytest.fixture
def hostile(world: Path, tmp_path: Path) -> Hostile:
    return Hostile(world, tmp_path)


bend = partial(bend_calls, COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_good_call_works(hostile: Hostile, name: str):
    hostile.fresh(COMMANDS[name])
    ended = hostile.call(COMMANDS[name], COMMANDS[name].words)
    assert ended.code == 0, ended.err
    COMMANDS[name].valid(hostile.work)


OWN_FILES = {  # command -> the file at -o, and words that make it another one
    "text cut": ("out.parquet", "--target=30"),
    "text dedup": ("out.parquet", "--near=0.9"),
    "text split": ("out/test.parquet", "--share=0.5"),
    "tiles": ("out.parquet", "--size=16"),
    "picture pool": ("out.parquet", "--white=200"),
    "predict": ("out.tif", "--overlap=4"),
    "picture": ("out.png", "--window=0,0,16,16"),
}


@pytest.mark.parametrize("name", OWN_FILES)
def test_a_file_that_the_command_did_not_make_stays_where_it_is(hostile: Hostile, name: str):
    """A mistyped -o costs a user a file of his own; the command's own file is made again."""
    command, (output, other) = COMMANDS[name], OWN_FILES[name]
    hostile.fresh(command)
    path = hostile.work / output
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a year of work" * 20_000)
    refused = hostile.call(command, command.words)
    assert (refused.code, refused.err.count("\n"), "did not make it" in refused.err) == (2, 1, True), refused.err
    assert path.read_bytes() == b"a year of work" * 20_000
    assert hostile.call(command, (*command.words, "--overwrite")).code == 0
    assert b"a year of work" not in path.read_bytes()
    again = hostile.call(command, (*command.words, other))
    assert again.code == 0, f"its own file is made again without a flag: {again.err}"


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.numbers])
def test_bent_settings(hostile: Hostile, name: str):
    bend(3 if name in SLOW else 5, "bend_settings")(hostile, name)


# heights reads the files of tiles and of predict: it is bent at random in the large test alone
@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.files and name != "heights"])
def test_bent_files(hostile: Hostile, name: str):
    bend(3 if name in SLOW else 5, "bend_file")(hostile, name)


@pytest.mark.parametrize("name", COMMANDS["heights"].files)
def test_heights_of_a_file_that_is_cut_or_empty_are_refused(hostile: Hostile, name: str):
    hostile.fresh(COMMANDS["heights"])
    whole = (hostile.work / name).read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        (hostile.work / name).write_bytes(content)
        ended = hostile.call(COMMANDS["heights"], HEIGHTS)
        assert (ended.code, ended.err.count(": error: "), "Traceback" in ended.err) == (2, 1, False), ended.err


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.numbers])
def test_many_bent_settings(hostile: Hostile, name: str):
    bend(40 if name in SLOW else 100, "bend_settings")(hostile, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.files])
def test_many_bent_files(hostile: Hostile, name: str):
    bend(40 if name in SLOW else 100, "bend_file")(hostile, name)


CASES = [
    ("pretrain", "crops.global_size=17", "multiple of the 8-pixel patches"),
    ("pretrain", "loss.dino_head.n_prototypes=0", "n_prototypes is 0; it must be at least 2"),
    ("pretrain", "seed=100000000000000000000", "seed is"),
    ("pretrain", "optimiser.learning_rate=nan", "learning_rate is nan"),
    ("pretrain", "batch_size=3000000000", "batch_size is 3000000000"),
    ("text train", "seed=-1", "seed is -1"),
    ("text train", "weight_decay=???", "weight_decay is missing"),
    ("text train", "model.layers=1000000000", "model.layers is 1000000000"),
    ("text cut", "--target=-5", "--target is -5; it must be at least 0"),
    ("text plan", "--mfu=nan", "--mfu is nan"),
    ("tiles", "--size=17", None),
    ("tiles", "--resolution=1e-5", "finer than 1/16"),
    ("tiles", "--stride=-1", "--stride is -1"),
    ("tiles", "--heights=rgb.tif", "has 3 bands; heights have one"),
    ("predict", "--overlap=9999", "overlap 9999 is more than three quarters"),
    ("heights", "--block=nan", "--block is nan"),
    ("pretrain", "seed=010", "reads as another number"),
    ("pretrain", "optimiser.teacher_momentum.start=${steps}", "teacher_momentum.start is 2.0; it must be"),
    ("pretrain", "optimiser.teacher_temperature.end=0", "teacher_temperature.end is 0.0; it must be above 0"),
    ("pretrain", "optimiser.rate.end=1e3", "rate.end is 1000.0; it must be"),
    ("pretrain", "optimiser.weight_decay.peak=-1", "weight_decay.peak is -1.0; it must be"),
    ("text plan", "--gpus=٣", "'٣' is no number"),
    ("picture", "--window=60,60,50,50", "has 64 rows and 64 columns"),
    ("picture", "--window=0,0,0,5", "has 64 rows and 64 columns"),
    ("text tokenise", "--output=~/x", "only a shell knows"),
    ("text tokenise", "--output=/", "is no place for a result"),
    ("text tokenise", "--output=-", "is no place for a result"),
    ("text tokenise", "--output=out/..", "is the folder above another"),
    ("heights", "backbone.name=hf-hub:no-body/no-model", "timm cannot make"),
]


@pytest.mark.parametrize(("name", "word", "said"), CASES, ids=[f"{name} {word}" for name, word, _ in CASES])
def test_what_once_hung_or_passed(hostile: Hostile, name: str, word: str, said: str | None):
    command = COMMANDS[name]
    hostile.fresh(command)
    start = word.split("=")[0]
    words = command.words
    if start == "--heights":
        words = tuple(part for part in words if part not in ("--heights", "chm.tif"))
    words = (*(part for part in words if not part.startswith(f"{start}=")), word)
    ended = hostile.check(command, words, word)
    assert said is None or (ended.code == 2 and said in ended.err), ended.err


def test_a_folder_of_no_tokens_and_a_raster_given_twice_are_refused(hostile: Hostile):
    """The Hub was asked for a tokenizer "images/tokenizer"; tiles of a raster counted twice."""
    hostile.fresh(COMMANDS["text train"])
    for name, words, said in (
        ("text train", ("train", "images", *TEXT[2:]), "tokens.json does not exist"),
        ("tiles", ("tiles", "rgb.tif", "./rgb.tif", "-o", "out.parquet", "--size=32"), "more than once"),
    ):
        ended = hostile.call(COMMANDS[name], words)
        assert (ended.code, ended.err.count(": error: "), said in ended.err) == (2, 1, True), ended.err


@pytest.mark.parametrize("name", ["text cut", "text dedup", "tiles", "predict", "picture pool", "picture"])
def test_the_ending_of_a_name_says_what_is_written(hostile: Hostile, name: str):
    """A PNG went by the name x.nope."""
    command = COMMANDS[name]
    hostile.fresh(command)
    for place in ("x.nope", "x"):
        words = tuple(place if word.startswith("out.") else word for word in command.words)
        ended = hostile.call(command, words)
        assert (ended.code, ended.err.count(": error: "), "must end in" in ended.err) == (2, 1, True), ended.err
        assert not (hostile.work / place).exists()


def test_tiles_that_are_no_multiple_of_a_patch_and_complex_rasters_are_refused(hostile: Hostile):
    import rasterio

    hostile.fresh(COMMANDS["tiles"])
    odd = tuple(word.replace("--size=32", "--size=17").replace("out.parquet", "tiles.parquet") for word in TILES)
    assert hostile.call(COMMANDS["tiles"], odd).code == 0
    ended = hostile.call(COMMANDS["heights"], HEIGHTS)
    assert ended.code == 2
    assert "17 is no multiple" in ended.err or "tiles of 17 pixels are no multiple" in ended.err
    with rasterio.open(hostile.work / "rgb.tif") as source:
        profile, values = {**source.profile, "dtype": "complex64"}, source.read().astype(np.complex64)
    with rasterio.open(hostile.work / "complex.tif", "w", **profile) as target:
        target.write(values)
    ended = hostile.call(COMMANDS["tiles"], ("tiles", "complex.tif", "-o", "out.parquet", "--size=32"))
    assert ended.code == 2
    assert "holds complex numbers" in ended.err


def test_exported_weights_that_changed_are_nowhere_loaded(hostile: Hostile):
    """One bit of a weight changes features, and nothing else tells of it."""
    hostile.fresh(COMMANDS["pretrain"])
    assert hostile.call(COMMANDS["pretrain"], PRETRAIN).code == 0
    weights = hostile.work / "out/teacher/model.safetensors"
    whole = weights.read_bytes()
    embed = ("embed", "images", "-o", "embedded", "--embedder", "checkpoint:out/teacher", "--workers=0")
    knn = (
        "knn",
        "model=out/teacher",
        "train=images",
        "test=images",
        "ks=1",
        "device=cpu",
        "resamples=10",
        "-o",
        "judged",
    )
    for main, words in (("curation.cli", embed), ("eval.cli", knn)):
        command = Command(main, words, writes=("embedded", "judged"))
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        ended = hostile.call(command, words)
        assert (ended.code, "another checksum" in ended.err) == (2, True), ended.err
        weights.write_bytes(whole)
        assert hostile.call(command, words).code == 0
    again = Command("pretrain.cli", PRETRAIN, writes=())
    assert hostile.call(again, PRETRAIN).code == 0
    weights.unlink()
    ended = hostile.call(again, PRETRAIN)
    assert (ended.code, "does not exist" in ended.err) == (2, True), "a finished run without its model is no success"


def test_a_tokenizer_is_trained_once_and_never_replaces_another(hostile: Hostile):
    command = COMMANDS["text tokenizer"]
    hostile.fresh(command)
    assert hostile.call(command, command.words).code == 0
    before = {path: path.read_bytes() for path in (hostile.work / "out").iterdir()}
    assert "as before" in hostile.call(command, command.words).err
    other = hostile.call(command, (*command.words[:-1], "--size=270"))
    assert (other.code, "another pool" in other.err) == (2, True)
    assert {path: path.read_bytes() for path in (hostile.work / "out").iterdir()} == before
    (hostile.work / "out/tokenizer.json").write_bytes(b"{")  # cut short by a kill: trained again
    assert hostile.call(command, command.words).code == 0
    assert {path: path.read_bytes() for path in (hostile.work / "out").iterdir()} == before


def test_pictures_of_a_raster_that_changed_are_new(hostile: Hostile):
    """The shared cache of Hugging Face datasets knows tables of tiles, not their rasters."""
    import rasterio

    command = COMMANDS["picture pool"]
    hostile.fresh(command)
    assert hostile.call(command, command.words).code == 0
    before = (hostile.work / "out.parquet").read_bytes()
    with rasterio.open(hostile.work / "rgb.tif", "r+") as raster:
        raster.write(255 - raster.read())
    assert "has changed since its tiles were cut" in hostile.call(command, command.words).err
    cut = COMMANDS["tiles"]
    assert hostile.call(cut, (*cut.words, "-o", "tiles.parquet", "--overwrite")).code == 0
    assert hostile.call(command, command.words).code == 0
    assert (hostile.work / "out.parquet").read_bytes() != before


@pytest.mark.parametrize("name", ["text cut", "text dedup", "tiles", "predict", "picture pool"])
def test_a_result_never_takes_the_place_of_a_pipe_or_folder(hostile: Hostile, name: str):
    command = COMMANDS[name]
    hostile.fresh(command)
    place = hostile.work / command.writes[0]
    os.mkfifo(place)
    assert hostile.call(command, command.words).code == 2
    assert place.is_fifo()


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ("pretrain.settings:PretrainSettings", {"optimiser": {"learning_rate": 1e31}}),
        ("text_lm.settings:TrainSettings", {"learning_rate": 1e31}),
        ("satellite.settings:TrainSettings", {"learning_rate": 1e31}),
        ("satellite.settings:TrainSettings", {"head": {"highest": 1e29}}),
        ("eval.tasks.classification:Knn", {"temperature": 1e29}),
        ("pretrain.settings:PretrainSettings", {"loss": {"ibot": 1e29}}),
        ("satellite.settings:TrainSettings", {"loss": {"huber": 1e29}}),
        ("text_lm.settings:TrainSettings", {"z_loss": 1e29}),
    ],
)
def test_numbers_that_only_overflow_are_refused_before_anything_runs(settings: str, given: dict):
    module, _, name = settings.partition(":")
    kind = getattr(importlib.import_module(module), name)
    with pytest.raises(CurationError, match=r"must be .*(at most|between)"):
        fill(kind, given)
