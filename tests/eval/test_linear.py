"""Linear probe: the batched sweep must equal heads trained one by one, and the test set must choose nothing."""

import math

import pytest
import torch
import torch.nn.functional as F

from eval.linear import LinearSettings, fit_linear, linear_probe, train_heads
from eval.splits import few_shot_rows, validation_split
from foundation.errors import CurationError


@pytest.fixture(scope="module")
def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(600) % 4
    x = torch.randn(4, 10, generator=generator)[y] + torch.randn(600, 10, generator=generator)
    return x[:400], y[:400], x[400:], y[400:]


SMALL = LinearSettings(learning_rates=(1e-3, 1e-1, 3.0), steps=200, batch_size=64)


def test_sweep_equals_heads_trained_one_by_one_with_autograd(data):
    x, y, _, _ = data
    inputs = {"narrow": x[:, :3], "wide": x}
    settings = LinearSettings(learning_rates=(1e-3, 0.5), steps=30, batch_size=32)
    rows = torch.randint(400, (30, 32), generator=torch.Generator().manual_seed(5))
    batches = [({name: part[r] for name, part in inputs.items()}, y[r]) for r in rows]
    banks = train_heads(batches, 4, settings)
    for name in inputs:
        width = inputs[name].shape[1]
        start = torch.randn(width, 4, generator=torch.Generator().manual_seed(settings.seed)) * 0.01
        for h, rate in enumerate(settings.learning_rates):
            weight = start.double().requires_grad_()
            bias = torch.zeros(4, dtype=torch.float64, requires_grad=True)
            optimiser = torch.optim.SGD([weight, bias], lr=1, momentum=0.9)
            for step, (batch, labels) in enumerate(batches):
                optimiser.param_groups[0]["lr"] = rate * 32 / 256 * 0.5 * (1 + math.cos(math.pi * step / 30))
                optimiser.zero_grad()
                F.cross_entropy(batch[name].double() @ weight + bias, labels).backward()
                optimiser.step()
            found_weight, found_bias = banks[name].head(h)
            torch.testing.assert_close(found_weight.double(), weight.detach(), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(found_bias.double(), bias.detach(), atol=1e-5, rtol=1e-4)


def test_learns_and_picks_a_sensible_head(data):
    found = linear_probe(*data, SMALL)
    assert found["accuracy"] > 0.8
    assert found["accuracy"] == pytest.approx(found["correct"].double().mean())
    assert len(found["probe"].val_accuracy) == 3
    assert found["val_accuracy"] == max(found["probe"].val_accuracy.values())


def test_how_much_there_is_to_do_is_said_before_and_how_long_after_the_first_steps(data, monkeypatch):
    monkeypatch.setattr("eval.linear.WORTH_A_LINE", 0)
    lines: list[str] = []
    fit_linear(data[0], data[1], SMALL, say=lines.append)
    assert lines[0].startswith("200 steps x 64 rows")
    assert lines[1:] == ["about 0.0 minutes to go"]


def test_the_test_labels_choose_nothing(data):
    x, y, x_test, y_test = data
    honest = linear_probe(x, y, x_test, y_test, SMALL)
    swapped = linear_probe(x, y, x_test, y_test.flip(0), SMALL)
    assert (honest["input"], honest["learning_rate"]) == (swapped["input"], swapped["learning_rate"])
    assert torch.equal(honest["probe"].weight, swapped["probe"].weight)


def test_the_informative_input_is_chosen(data):
    x, y, x_test, y_test = data
    noise = torch.randn(600, 10, generator=torch.Generator().manual_seed(9))
    found = linear_probe({"a noise": noise[:400], "b": x}, y, {"a noise": noise[400:], "b": x_test}, y_test, SMALL)
    assert found["input"] == "b"


def test_one_diverged_head_leaves_the_others_alone(data):
    x, y, _, _ = data
    alone = fit_linear(x, y, LinearSettings(learning_rates=(0.1,), steps=100, batch_size=64))
    beside = fit_linear(x, y, LinearSettings(learning_rates=(0.1, 1e30), steps=100, batch_size=64))
    assert beside.learning_rate == 0.1
    torch.testing.assert_close(alone.weight, beside.weight)  # another width may round differently
    with pytest.raises(CurationError, match="diverged"):
        fit_linear(x * 1e10, y, LinearSettings(learning_rates=(1e30,), steps=100, batch_size=64))


def test_refit_sees_every_row(data):
    x, y, x_test, y_test = data
    settings = LinearSettings(learning_rates=(0.1, 0.3), steps=200, batch_size=64, val_share=0.5, refit=True)
    found = linear_probe(x, y, x_test, y_test, settings)
    assert found["accuracy"] > 0.8
    held = fit_linear(x, y, LinearSettings(**{**vars(settings), "refit": False}))
    assert held.learning_rate == found["learning_rate"]
    assert not torch.equal(held.weight, found["probe"].weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": ()}, "at least one"),
        ({"learning_rates": (-1.0,)}, "above 0"),
        ({"steps": 0}, "steps"),
        ({"momentum": 1.0}, "momentum"),
        ({"precision": "fp8"}, "float32, bfloat16"),
    ],
)
def test_bad_settings_are_named(settings: dict, message: str):
    with pytest.raises(CurationError, match=message):
        LinearSettings(**settings)


def test_inputs_of_different_lengths_are_refused(data):
    x, y, _, _ = data
    with pytest.raises(CurationError, match="different numbers of rows"):
        fit_linear({"a": x, "b": x[:10]}, y, SMALL)
    with pytest.raises(CurationError, match="reads 'other'"):
        fit_linear({"other": x}, y, SMALL).scores({"another": x})


def test_validation_split_holds_every_class_and_never_its_last_row():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2])
    train, val = validation_split(labels, 0.1, seed=3)
    assert sorted(torch.cat([train, val]).tolist()) == list(range(54))
    assert labels[val].bincount(minlength=3).tolist() == [5, 1, 0]
    with pytest.raises(CurationError, match="single training row"):
        validation_split(torch.arange(5))
    with pytest.raises(CurationError, match="share"):
        validation_split(labels, 1.0)


def test_few_shot_rows_are_balanced_and_refused_when_short():
    labels = torch.tensor([2] * 9 + [0] * 4)
    rows = few_shot_rows(labels, 4, seed=0)
    assert labels[rows].bincount().tolist() == [4, 0, 4]
    with pytest.raises(CurationError, match="class 0 has 4 rows"):
        few_shot_rows(labels, 5, seed=0)
