"""All settings of a pretraining run; what changes the numbers stands apart from what only changes the speed."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import training.settings
from foundation.errors import CurationError
from foundation.settings import (
    BelowOne,
    Choices,
    Count,
    CountOrZero,
    NonNegative,
    PartOfOne,
    Positive,
    Range,
    Share,
    Temperature,
    Weight,
    check,
    read_settings,
    require_number,
)
from pretrain.centring import CENTRINGS
from pretrain.heads import PROTOTYPES
from pretrain.masking import MaskSettings
from pretrain.multicrop import CropSettings
from training.schedules import ScheduleSettings, in_steps, schedule
from training.settings import BatchSize, RunSettings, fill_run

Width = Annotated[int, Range(ge=1, le=1 << 20)]  # of a layer


@dataclass(frozen=True)
class BackboneSettings:
    """The model.

    Attributes:
        name: of a timm model, transformer or convolutional (`timm.list_models()`).
        args: further arguments of timm: patch_size, reg_tokens, init_values (LayerScale), swiglu_mlp, embed_dim, ...
        drop_path: probability of stochastic depth, the same in every block of a transformer.
        skip_dropped: do not compute what stochastic depth drops; False computes and multiplies by zero.
        init: weights at the start: "timm" (those of the model there) or "dinov2" (see `reset_linear_layers`).
        positions: learned ones for crops of another size: "timm" (antialiased) or "dinov2" (see `resized_positions`).
    """

    name: str = "vit_small_patch16_224"
    args: dict[str, Any] = field(default_factory=dict)
    drop_path: BelowOne = 0.0
    skip_dropped: bool = True
    init: Annotated[str, Choices("timm", "dinov2")] = "timm"
    positions: Annotated[str, Choices("timm", "dinov2")] = "timm"

    def __post_init__(self) -> None:
        check(self, "backbone")
        check_timm_args(self.args)


def check_timm_args(args: dict[str, Any]) -> None:
    """Refuse sizes that no model has, which timm would try to build for hours.

    Raises:
        CurationError: names the argument.
    """
    for name, value in args.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            most = 1000 if name == "depth" else 1 << 20
            require_number(value, Range(ge=-most, le=most), f"backbone.args.{name}")


@dataclass(frozen=True)
class HeadSettings:
    """A projection head, see `pretrain.heads.Head`.

    Attributes:
        prototypes: "cosine", "weight_norm" (DINOv2) or "linear" (DINOv3); see `pretrain.heads.Prototypes`.
    """

    n_prototypes: Annotated[int, Range(ge=2, le=1 << 24)] = 65536
    n_layers: Annotated[int, Range(ge=1, le=64)] = 3
    hidden: Width = 2048
    bottleneck: Width = 256
    prototypes: Annotated[str, Choices(*PROTOTYPES)] = "cosine"

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class GramSettings:
    """Gram anchoring (DINOv3, section 4.2).

    Attributes:
        weight: of the loss; 0 switches it off.
        start: step (or share of the run) at which the anchor, a copy of the teacher, is taken.
        refresh: steps between further copies; 0 keeps the first.
    """

    weight: Weight = 0.0
    start: NonNegative = 0.0
    refresh: CountOrZero = 10_000

    def __post_init__(self) -> None:
        check(self, "loss.gram")


@dataclass(frozen=True)
class LossSettings:
    """The parts of the loss; a weight of 0 switches one off.

    Attributes:
        dino, ibot, koleo: weights.
        dino_head: its head.
        ibot_head: its head; None shares the one of DINO.
        centring: "sinkhorn" or "softmax" (moving centre).
        sinkhorn_iterations: of the former.
        centre_momentum: of the latter.
        student_temperature: of the softmax of the student.
        gram: see `GramSettings`.
    """

    dino: Weight = 1.0
    ibot: Weight = 1.0
    koleo: Weight = 0.1
    dino_head: HeadSettings = field(default_factory=HeadSettings)
    ibot_head: HeadSettings | None = None
    centring: Annotated[str, Choices(*CENTRINGS)] = "sinkhorn"
    sinkhorn_iterations: Annotated[int, Range(ge=1, le=1000)] = 3
    centre_momentum: Share = 0.9
    student_temperature: Temperature = 0.1
    gram: GramSettings = field(default_factory=GramSettings)

    def __post_init__(self) -> None:
        check(self, "loss")


@dataclass(frozen=True)
class OptimiserSettings:
    """AdamW and the schedules; warm-ups are steps, or below 1 shares of the run.

    Attributes:
        learning_rate: at its peak, for a batch of ``reference_batch``; the schedule is a factor of it.
        reference_batch: the peak is multiplied by the root of batch size / this; 0 takes it as it is.
        rate: factor of the peak over the run.
        final_rate: the learning rate at the end, absolute; overrides ``rate.end`` where it is above 0.
        weight_decay, teacher_momentum, teacher_temperature: over the run.
        betas: of AdamW.
        clip: greatest gradient norm of each part of the student (backbone, heads); 0 switches clipping off.
        layer_decay: learning rate of a layer by that of the next one.
        patch_embed_factor: of the learning rate of the patch embedding.
        freeze_last_layer: steps (or share) in which the prototypes stay.
    """

    learning_rate: Positive = 1e-3
    reference_batch: CountOrZero = 1024
    rate: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(0.0, 1.0, 0.0, warmup=0.1))
    final_rate: NonNegative = 1e-6
    weight_decay: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(0.04, 0.04, 0.4))
    teacher_momentum: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(0.992, 0.992, 1.0))
    teacher_temperature: ScheduleSettings = field(
        default_factory=lambda: ScheduleSettings(0.04, 0.07, 0.07, warmup=0.3, shape="constant")
    )
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    clip: NonNegative = 3.0
    layer_decay: PartOfOne = 0.9
    patch_embed_factor: NonNegative = 0.2
    freeze_last_layer: NonNegative = 0.01

    def __post_init__(self) -> None:
        check(self, "optimiser")
        self.rate.require_within(Range(ge=0, le=1), "optimiser.rate")
        self.weight_decay.require_within(Range(ge=0, le=100), "optimiser.weight_decay")
        self.teacher_momentum.require_within(Range(ge=0, le=1), "optimiser.teacher_momentum")
        self.teacher_temperature.require_within(Range(gt=0, le=1000), "optimiser.teacher_temperature")


@dataclass(frozen=True)
class ProbeSettings:
    """What is looked at while it trains: the loss does not tell how good the features are.

    Attributes:
        every: steps between looks; 0 never looks.
        rows: images of the pool, drawn once; a quarter of them ask, the others answer.
        k: neighbours of the k-NN, where the pool has labels; without labels there is the effective rank only.
    """

    every: CountOrZero = 1000
    rows: Annotated[int, Range(ge=2)] = 2000
    k: Count = 20

    def __post_init__(self) -> None:
        check(self, "probe")


@dataclass(frozen=True)
class SpeedSettings(training.settings.SpeedSettings):
    """Where and how fast a run computes.

    Attributes:
        compile: `torch.compile` the backbones.
        checkpoint_activations: recompute blocks in the backward pass: less memory, a third more work.
        cache_gb: decoded images are kept in memory where all fit into this (with n_workers=0).
    """

    compile: bool = False
    checkpoint_activations: bool = False
    cache_gb: NonNegative = 1.0


@dataclass(frozen=True)
class PretrainSettings(RunSettings):
    """A pretraining run; samples are images. Sinkhorn, KoLeo and the moving centre see a micro-batch at a time.

    Attributes:
        steps: of the optimiser.
        max_bad: share of the rows that may be unreadable before the run stops.
        init_from: run folder of a finished run whose student and teacher this one starts from (a phase at a higher
            resolution, or a continued run); "" starts anew.
        collapse: least information of the teacher's assignments in nats (see `assignment_information`); below it in
            three looks in a row the run stops. 0 never stops.
    """

    steps: Count = 125_000
    batch_size: BatchSize = 1024
    max_bad: Share = 0.01
    init_from: str = ""
    collapse: NonNegative = 0.005
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    crops: CropSettings = field(default_factory=CropSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss.dino + self.loss.ibot <= 0:
            raise CurationError("loss.dino and loss.ibot are both 0; one of them must train the model")
        self.schedules()  # a warm-up that does not fit is found before anything is read

    @property
    def peak_rate(self) -> float:
        """The learning rate at its peak for this batch size."""
        reference = self.optimiser.reference_batch
        return self.optimiser.learning_rate * (math.sqrt(self.batch_size / reference) if reference else 1.0)

    @property
    def frozen_steps(self) -> int:
        return in_steps(self.optimiser.freeze_last_layer, self.steps)

    def schedules(self) -> dict[str, Any]:
        """Every schedule as a function of the step: rate, weight_decay, teacher_momentum, teacher_temperature."""
        given = self.optimiser
        rate = given.rate
        if given.final_rate > 0:
            rate = ScheduleSettings(rate.start, rate.peak, given.final_rate / self.peak_rate, rate.warmup, rate.shape)
        parts = {
            "rate": rate,
            "weight_decay": given.weight_decay,
            "teacher_momentum": given.teacher_momentum,
            "teacher_temperature": given.teacher_temperature,
        }
        return {name: schedule(part, self.steps, f"optimiser.{name}") for name, part in parts.items()}


def load_settings(path: str | Path | None = None, overrides: list[str] | None = None) -> PretrainSettings:
    """Settings from a YAML recipe, then ``key=value`` overrides such as ``crops.n_local=4``.

    Raises:
        CurationError: no such file, an unknown setting, or a value of another kind or out of its range.
    """
    return settings_from(read_settings(path, overrides))


def settings_from(content: dict[str, Any]) -> PretrainSettings:
    """Settings from a plain nested dict; names, types and ranges are checked, see `training.settings.fill_run`."""
    return fill_run(PretrainSettings, content)
