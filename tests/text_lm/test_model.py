"""The model: what a size costs must be true before a GPU month is spent on it, and packing must not leak."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from foundation.errors import CurationError
from text_lm.loss import language_model_loss
from text_lm.model import (
    ModelSettings,
    build_model,
    count_parameters,
    flops_per_token,
    llama_config,
    load_model,
    next_token_logits,
)
from text_lm.packing import IGNORE
from text_lm.plan import plan_run
from text_lm.settings import TrainSettings, load_settings, settings_from
from text_lm.tokenizer import open_tokenizer, train_bpe
from text_lm.train import parameter_groups
from training.schedules import rate_factor

BYTES = open_tokenizer("bytes")
SMALL = ModelSettings(width=32, layers=3, heads=4, kv_heads=2, context=24, init_std=0.3, tied=False)
CONFIGS = Path(__file__).parents[2] / "configs/text_lm"


def reference(weights: dict[str, torch.Tensor], ids: list[int], shape: ModelSettings) -> torch.Tensor:
    """LLaMA written out in float64 (Touvron et al. 2023; rotary positions by complex numbers, Su et al. 2021)."""
    w = {name: value.double() for name, value in weights.items()}
    head, n = shape.width // shape.heads, len(ids)
    angles = torch.outer(torch.arange(n).double(), shape.rope_theta ** (-torch.arange(0, head, 2).double() / head))
    turn = torch.polar(torch.ones_like(angles), angles)

    def norm(x, gain):
        return gain * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)

    def rotate(x):  # Hugging Face pairs feature i with i + head / 2
        turned = torch.complex(x[..., : head // 2], x[..., head // 2 :]) * turn[:, None]
        return torch.cat([turned.real, turned.imag], -1)

    x = w["model.embed_tokens.weight"][ids]
    for layer in range(shape.layers):
        p = f"model.layers.{layer}."
        h = norm(x, w[p + "input_layernorm.weight"])
        q, k, v = ((h @ w[p + f"self_attn.{c}_proj.weight"].T).view(n, -1, head) for c in "qkv")
        q, k = rotate(q), rotate(k)
        out = torch.zeros(n, shape.heads, head, dtype=torch.float64)
        for one, two in itertools.product(range(shape.heads), range(n)):
            group = one * k.shape[1] // shape.heads
            scores = torch.softmax(k[: two + 1, group] @ q[two, one] / head**0.5, 0)
            out[two, one] = scores @ v[: two + 1, group]
        x = x + out.reshape(n, -1) @ w[p + "self_attn.o_proj.weight"].T
        h = norm(x, w[p + "post_attention_layernorm.weight"])
        gate, up = h @ w[p + "mlp.gate_proj.weight"].T, h @ w[p + "mlp.up_proj.weight"].T
        x = x + (gate * torch.sigmoid(gate) * up) @ w[p + "mlp.down_proj.weight"].T
    return norm(x, w["model.norm.weight"]) @ w["lm_head.weight"].T


def test_packed_documents_are_what_each_is_alone_in_float64():
    model = build_model(SMALL, BYTES, 0)
    rng = np.random.default_rng(0)
    pieces = [rng.integers(0, 256, n).tolist() for n in (5, 1, 11, 7)]
    inputs = torch.tensor([[token for piece in pieces for token in piece]])
    documents = torch.tensor([[i for i, piece in enumerate(pieces) for _ in piece]])
    positions = torch.tensor([[j for piece in pieces for j in range(len(piece))]])
    with torch.no_grad():
        packed = next_token_logits(model, inputs, documents, positions)[0]
        crossed = next_token_logits(model, inputs)[0]
    alone = torch.cat([reference(model.state_dict(), piece, SMALL) for piece in pieces])
    assert (packed - alone).abs().max() < 1e-4 * alone.abs().max()
    whole = reference(model.state_dict(), inputs[0].tolist(), SMALL)
    assert (crossed - whole).abs().max() < 1e-4 * whole.abs().max()
    assert (crossed[5:] - packed[5:]).abs().max() > 0.1  # the switch does switch


def test_changing_a_document_changes_nothing_in_its_neighbours():
    model = build_model(SMALL, BYTES, 0)
    documents = torch.tensor([[0] * 6 + [1] * 8 + [2] * 5])
    positions = torch.tensor([[*range(6), *range(8), *range(5)]])
    inputs = torch.arange(19)[None]
    changed = inputs.clone()
    changed[0, 6:14] = 200
    with torch.no_grad():
        one, two = (next_token_logits(model, x, documents, positions)[0] for x in (inputs, changed))
    assert torch.equal(one[:6], two[:6])
    assert torch.equal(one[14:], two[14:])


def test_loss_matches_float64_and_leaves_out_ignored_targets():
    logits = 5 * torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 11, (2, 7), generator=torch.Generator().manual_seed(1))
    targets[0, 3] = targets[1, 0] = IGNORE
    wanted = z = 0.0
    for b, t in itertools.product(range(2), range(7)):
        if targets[b, t] != IGNORE:
            log_z = float(np.log(np.exp(logits[b, t].double().numpy()).sum()))
            wanted += log_z - float(logits[b, t, targets[b, t]])
            z += log_z**2
    total, cross_entropy = language_model_loss(logits, targets, 0.01)
    assert float(cross_entropy) == pytest.approx(wanted, rel=1e-6)
    assert float(total) == pytest.approx(wanted + 0.01 * z, rel=1e-6)
    low = language_model_loss(logits.bfloat16(), targets)[0]
    assert low.dtype == torch.float32


@pytest.mark.parametrize(
    "shape",
    [SMALL, ModelSettings(), ModelSettings(width=48, layers=1, heads=2, ffn=50, vocab_multiple=1)],
)
def test_counted_parameters_are_the_models(shape: ModelSettings):
    model = build_model(shape, BYTES, 0)
    assert count_parameters(shape, BYTES.vocab_size) == sum(p.numel() for p in model.parameters())


def test_flops_match_the_profiler():
    from torch.utils.flop_counter import FlopCounterMode

    shape = ModelSettings(width=64, layers=2, heads=4, context=32)
    model = build_model(shape, BYTES, 0)
    counter = FlopCounterMode(display=False)
    # the plain kernel of attention, since not every build counts the fused one
    with counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        next_token_logits(model, torch.zeros(2, 32, dtype=torch.int64)).sum().backward()
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    vectors = sum(p.numel() for p in model.parameters() if p.ndim == 1)
    wanted = 64 * (flops_per_token(shape, BYTES.vocab_size, 32) - 6 * vectors)
    assert counter.get_total_flops() == pytest.approx(wanted, rel=0.02)
    assert matrices + vectors == count_parameters(shape, BYTES.vocab_size)


def test_weights_depend_on_the_seed_alone():
    state = torch.random.get_rng_state()
    one, same, other = (build_model(SMALL, BYTES, seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    model = build_model(ModelSettings(width=256, layers=8, heads=4), BYTES, 0)
    assert float(model.model.layers[0].mlp.down_proj.weight.detach().std()) == pytest.approx(0.02 / 4, rel=0.02)
    assert float(model.model.layers[0].mlp.up_proj.weight.detach().std()) == pytest.approx(0.02, rel=0.02)


def test_norms_do_not_decay_and_every_weight_is_in_one_group():
    model = build_model(SMALL, BYTES, 0)
    matrices, vectors = parameter_groups(model.parameters(), 0.1)
    assert {p.ndim for p in matrices["params"]} == {2}
    assert {p.ndim for p in vectors["params"]} == {1}
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("path", sorted((CONFIGS / "recipe").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_can_be_planned(path: Path):
    settings = load_settings(path)
    assert settings.steps > 0
    rate_factor(settings.schedule, settings.steps, settings.warmup_steps, settings.final_lr, settings.decay_steps)
    assert "hours" in plan_run(settings, 32_000)["time"]
    llama_config(settings.model, 32_000, 1, 2, 0)


def test_sizes_are_what_their_names_say():
    names = {"1m": 1e6, "10m": 1e7, "30m": 3e7, "400m": 4e8, "1b": 1.4e9, "7b": 6.74e9}
    for name, wanted in names.items():
        shape = load_settings(None, [f"model={CONFIGS / 'model' / name}.yaml", "tokens=1e9"]).model
        vocab = 259 if wanted < 1e8 else 32_000
        assert count_parameters(shape, vocab) == pytest.approx(wanted, rel=0.15), name


def test_settings_are_checked(tmp_path: Path):
    assert load_settings(None, ["tokens=1e6"]).tokens == 1_000_000
    assert TrainSettings().science() == settings_from({"speed": {"devices": 2}}).science()
    assert TrainSettings().science() != settings_from({"seed": 1}).science()
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "broken.yaml").write_text("a: [")
    for path, override, message in [
        (None, "speed=5", "setting speed is 5"),
        (None, "betas=[1]", r"betas is \[1\]; it needs 2 values"),
        (None, "model.width=abc", "setting model.width is 'abc'; it needs a whole number"),
        (None, "model.kv_heads=3", "must divide model.heads 4"),
        (None, "model.width=12", "multiple of 2 x heads = 8"),
        (None, "model=none.yaml", "none.yaml does not exist"),
        (tmp_path / "list.yaml", "seed=0", "must hold key: value lines"),
        (tmp_path / "broken.yaml", "seed=0", "broken.yaml"),
        (tmp_path / "no.yaml", "seed=0", "no.yaml does not exist"),
    ]:
        with pytest.raises(CurationError, match=message):
            load_settings(path, [override])
    with pytest.raises(CurationError, match="peak of 'abacus' is not known"):
        plan_run(TrainSettings(), 259, "abacus")


def test_models_that_do_not_fit_their_tokeniser_are_refused(tmp_path: Path):
    bpe = train_bpe([f"the cat number {i} sat" for i in range(60)], 330)
    build_model(SMALL, BYTES, 0).save_pretrained(tmp_path / "model")
    assert load_model(tmp_path / "model", BYTES).config.vocab_size == 320
    with pytest.raises(CurationError, match="'bpe' has 330 tokens but the model has 320"):
        load_model(tmp_path / "model", bpe)
    with pytest.raises(CurationError, match="cannot be loaded"):
        load_model(tmp_path / "nothing")
    config = json.loads((tmp_path / "model/config.json").read_text())
    for layers, problem in ((0, "unexpected keys"), (config["num_hidden_layers"] + 1, "missing keys")):
        (tmp_path / "model/config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
        with pytest.raises(CurationError, match=problem):  # a layer at random, or none
            load_model(tmp_path / "model")
    with pytest.raises(CurationError, match="attention 'eager' is unknown"):
        build_model(SMALL, BYTES, 0, "eager")


@pytest.mark.slow
def test_flex_attention_keeps_documents_apart_as_the_plain_kernel_does():
    documents = torch.tensor([[0] * 6 + [1] * 8 + [2] * 5])
    positions = torch.tensor([[*range(6), *range(8), *range(5)]])
    inputs = torch.arange(19)[None]
    with torch.no_grad():
        plain, flex = (
            next_token_logits(build_model(SMALL, BYTES, 0, kernel), inputs, documents, positions)
            for kernel in ("sdpa", "flex_attention")
        )
    assert (plain - flex).abs().max() < 1e-4 * plain.abs().max()
