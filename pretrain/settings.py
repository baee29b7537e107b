"""All settings of a pretraining run; what changes the numbers stands apart from what only changes the speed."""

import math
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from foundation.errors import CurationError
from pretrain.centring import CENTRINGS
from pretrain.heads import PROTOTYPES
from pretrain.masking import MaskSettings
from pretrain.multicrop import CropSettings
from pretrain.schedules import ScheduleSettings, in_steps, schedule

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
STRATEGIES = ("auto", "ddp", "fsdp")


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
    drop_path: float = 0.0
    skip_dropped: bool = True
    init: str = "timm"
    positions: str = "timm"

    def __post_init__(self) -> None:
        for name in ("init", "positions"):
            if getattr(self, name) not in ("timm", "dinov2"):
                raise CurationError(f"backbone.{name} {getattr(self, name)!r} is unknown; use timm or dinov2")


@dataclass(frozen=True)
class HeadSettings:
    """A projection head, see `pretrain.heads.Head`.

    Attributes:
        prototypes: "cosine", "weight_norm" (DINOv2) or "linear" (DINOv3); see `pretrain.heads.Prototypes`.
    """

    n_prototypes: int = 65536
    n_layers: int = 3
    hidden: int = 2048
    bottleneck: int = 256
    prototypes: str = "cosine"

    def __post_init__(self) -> None:
        if self.prototypes not in PROTOTYPES:
            raise CurationError(f"prototypes {self.prototypes!r} is unknown; use {', '.join(PROTOTYPES)}")


@dataclass(frozen=True)
class GramSettings:
    """Gram anchoring (DINOv3, section 4.2).

    Attributes:
        weight: of the loss; 0 switches it off.
        start: step (or share of the run) at which the anchor, a copy of the teacher, is taken.
        refresh: steps between further copies; 0 keeps the first.
    """

    weight: float = 0.0
    start: float = 0.0
    refresh: int = 10_000


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

    dino: float = 1.0
    ibot: float = 1.0
    koleo: float = 0.1
    dino_head: HeadSettings = field(default_factory=HeadSettings)
    ibot_head: HeadSettings | None = None
    centring: str = "sinkhorn"
    sinkhorn_iterations: int = 3
    centre_momentum: float = 0.9
    student_temperature: float = 0.1
    gram: GramSettings = field(default_factory=GramSettings)


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

    learning_rate: float = 1e-3
    reference_batch: int = 1024
    rate: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(0.0, 1.0, 0.0, warmup=0.1))
    final_rate: float = 1e-6
    weight_decay: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(0.04, 0.04, 0.4))
    teacher_momentum: ScheduleSettings = field(default_factory=lambda: ScheduleSettings(0.992, 0.992, 1.0))
    teacher_temperature: ScheduleSettings = field(
        default_factory=lambda: ScheduleSettings(0.04, 0.07, 0.07, warmup=0.3, shape="constant")
    )
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 3.0
    layer_decay: float = 0.9
    patch_embed_factor: float = 0.2
    freeze_last_layer: float = 0.01


@dataclass(frozen=True)
class ProbeSettings:
    """What is looked at while it trains: the loss does not tell how good the features are.

    Attributes:
        every: steps between looks; 0 never looks.
        rows: images of the pool, drawn once; a quarter of them ask, the others answer.
        k: neighbours of the k-NN, where the pool has labels; without labels there is the effective rank only.
    """

    every: int = 1000
    rows: int = 2000
    k: int = 20


@dataclass(frozen=True)
class SpeedSettings:
    """Where and how a run computes.

    Attributes:
        accelerator: "auto", "cpu", "gpu".
        devices: processes per machine; 0 takes every device.
        nodes: machines.
        strategy: "auto", "ddp" or "fsdp".
        micro_batch_size: images per forward pass of one process; 0 takes its whole share of the batch. Sinkhorn,
            KoLeo and the moving centre see a micro-batch of every process at a time.
        compile: `torch.compile` the backbones.
        checkpoint_activations: recompute blocks in the backward pass: less memory, a third more work.
        n_workers: processes that read and decode.
        cache_gb: decoded images are kept in memory where all fit into this (with n_workers=0).
        checkpoint_every, log_every: steps.
        peak_flops: of one device, for the MFU; 0 looks the device up.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    micro_batch_size: int = 0
    compile: bool = False
    checkpoint_activations: bool = False
    n_workers: int = 0
    cache_gb: float = 1.0
    checkpoint_every: int = 1000
    log_every: int = 10
    peak_flops: float = 0.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise CurationError(f"speed.strategy {self.strategy!r} is unknown; use {', '.join(STRATEGIES)}")
        for name in ("checkpoint_every", "log_every", "nodes"):
            if getattr(self, name) < 1:
                raise CurationError(f"speed.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("devices", "micro_batch_size", "n_workers", "cache_gb"):
            if getattr(self, name) < 0:
                raise CurationError(f"speed.{name} is {getattr(self, name)}; it must not be negative")


@dataclass(frozen=True)
class PretrainSettings:
    """A pretraining run. Those before ``probe`` change the model.

    Attributes:
        steps: of the optimiser.
        batch_size: images per step, over all processes.
        seed: of the initial weights, the order of the data, the crops and the masks.
        precision: "32-true", "bf16-mixed" or "16-mixed".
        max_bad: share of the rows that may be unreadable before the run stops.
        init_from: run folder of a finished run whose student and teacher this one starts from (a phase at a higher
            resolution, or a continued run); "" starts anew.
        collapse: least information of the teacher's assignments in nats (see `assignment_information`); below it in
            three looks in a row the run stops. 0 never stops.
    """

    steps: int = 125_000
    batch_size: int = 1024
    seed: int = 0
    precision: str = "32-true"
    max_bad: float = 0.01
    init_from: str = ""
    collapse: float = 0.005
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    crops: CropSettings = field(default_factory=CropSettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise CurationError(f"precision {self.precision!r} is unknown; use {', '.join(PRECISIONS)}")
        if self.steps < 1 or self.batch_size < 1:
            raise CurationError(f"steps is {self.steps} and batch_size {self.batch_size}; both must be at least 1")
        if not 0 <= self.max_bad <= 1:
            raise CurationError(f"max_bad is {self.max_bad}; it is a share of the rows")
        if self.loss.centring not in CENTRINGS:
            raise CurationError(f"loss.centring {self.loss.centring!r} is unknown; use {', '.join(CENTRINGS)}")
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

    def science(self) -> dict[str, Any]:
        """The settings that change the numbers: two runs that share them and the data may be resumed as one."""
        content = asdict(self)
        content.pop("speed")
        return content


def load_settings(path: str | Path | None = None, overrides: list[str] | None = None) -> PretrainSettings:
    """Settings from a YAML recipe, then ``key=value`` overrides such as ``crops.n_local=4``.

    Raises:
        CurationError: no such file, an unknown setting, or a value of another kind.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        given: Any = OmegaConf.create()
        if path is not None:
            given = OmegaConf.load(path)
            if not isinstance(given, DictConfig):
                raise CurationError(f"recipe {path} must hold key: value lines")
        given = OmegaConf.merge(given, OmegaConf.from_dotlist(overrides or []))
        content: Any = OmegaConf.to_container(given, resolve=True)
    except OSError as error:
        raise CurationError(f"recipe {path} cannot be read: {error.strerror}") from error
    except (OmegaConfBaseException, YAMLError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CurationError(f"settings {path or 'on the command line'}: {reason}") from error
    return settings_from(content)


def settings_from(content: dict[str, Any]) -> PretrainSettings:
    """Settings from a plain nested dict, every key and type checked."""
    return _merged(PretrainSettings(), content, "")


def _value(old: Any, value: Any, name: str) -> Any:
    """``value`` as the type of the default ``old``."""
    if name == "loss.ibot_head":
        return None if value is None else _merged(HeadSettings(), value, name)
    if is_dataclass(old):
        return _merged(old, value, name)
    if isinstance(old, dict) and (value is None or isinstance(value, dict)):
        return value or {}
    if isinstance(old, tuple) and isinstance(value, (list, tuple)) and len(value) == len(old):
        return tuple(_value(part, item, name) for part, item in zip(old, value, strict=True))
    if isinstance(old, bool) or isinstance(value, bool):
        if isinstance(old, bool) and isinstance(value, bool):
            return value
    elif isinstance(old, int) and isinstance(value, (int, float)) and value == int(value):
        return int(value)
    elif isinstance(old, float):
        try:
            return float(value)  # 1e-4 without a point is a string in YAML
        except (TypeError, ValueError):
            pass
    elif isinstance(old, str) and isinstance(value, str):
        return value
    raise CurationError(f"setting {name} is {value!r}; it needs {_kind(old)}, such as {old!r}")


def _merged(old: Any, value: Any, name: str) -> Any:
    """A part of the settings over its own defaults, which may differ from those of its class."""
    if not isinstance(value, dict):
        raise CurationError(f"setting {name} is {value!r}; it needs key: value lines of its own")
    parts = {entry.name: getattr(old, entry.name) for entry in fields(old)}
    for key, item in value.items():
        full = f"{name}.{key}" if name else str(key)
        if key not in parts:
            raise CurationError(f"setting {full} is unknown; {name or 'a run'} has {', '.join(sorted(parts))}")
        parts[key] = _value(parts[key], item, full)
    return type(old)(**parts)


def _kind(old: Any) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"}
    return names.get(type(old), type(old).__name__)
