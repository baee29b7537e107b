"""What decides a run and what does not: a setting in the wrong half lets two different runs be taken for one."""

from dataclasses import dataclass

import pytest
import torch

from foundation.errors import CurationError
from training.devices import fast_precision, in_fast_precision
from training.peaks import peak_flops, peak_of
from training.settings import RunSettings, SpeedSettings, fill_run


@dataclass(frozen=True)
class Settings(RunSettings):
    """A run."""

    steps: int = 3


def test_the_micro_batch_decides_and_speed_does_not():
    plain = Settings().science()
    assert "speed" not in plain
    assert fill_run(Settings, {"speed": {"checkpoint_every": 7, "n_workers": 3}}).science() == plain
    assert fill_run(Settings, {"micro_batch_size": 4}).science() == {**plain, "micro_batch_size": 4}
    # as recipes wrote it before it counted
    old = {"speed": {"micro_batch_size": 4}}
    assert fill_run(Settings, old) == fill_run(Settings, {"micro_batch_size": 4})
    assert old == {"speed": {"micro_batch_size": 4}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"batch_size": 10, "micro_batch_size": 4}, "batch_size 10 must be a multiple of micro_batch_size 4"),
        ({"speed": {"micro_batch_size": -1}}, "micro_batch_size is -1; it must be at least 0"),
        ({"seed": -1}, "seed is -1"),
        ({"speed": {"strategy": "magic"}}, r"speed\.strategy is 'magic'; it must be one of auto, ddp, fsdp"),
        ({"speed": {"checkpoint_every": 0}}, r"speed\.checkpoint_every is 0; it must be at least 1"),
        ({"precision": "fp8"}, "precision is 'fp8'"),
    ],
)
def test_what_does_not_fit_is_refused(content: dict, words: str):
    with pytest.raises(CurationError, match=words):
        fill_run(Settings, content)


def test_auto_is_the_precision_that_this_device_computes_fast_and_belongs_to_the_run():
    asked = Settings(precision="auto", speed=SpeedSettings(accelerator="cpu"))
    assert in_fast_precision(asked).science()["precision"] == fast_precision("cpu")
    exact = Settings(precision="32-true")
    assert in_fast_precision(exact) is exact


def test_peaks_are_dense_and_unknown_devices_have_none(monkeypatch: pytest.MonkeyPatch):
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("some new card") is None
    assert peak_of(torch.device("cpu")) is None
    assert peak_of(torch.device("cpu"), 1e12) == 1e12
    names = {"NVIDIA L40S": 362e12, "Tesla V100-SXM2-32GB": None, "NVIDIA A40": 37.4e12, "NVIDIA Next": None}
    for name, peak in names.items():  # an A40 is known to Lightning alone, a V100 has no bfloat16
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_of(torch.device("cuda")) == peak
