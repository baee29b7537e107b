"""All settings of a training run: one dataclass, filled from a YAML file and ``key=value`` overrides."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foundation.errors import CurationError
from foundation.files import digest_json
from text_lm.model import ModelSettings

PRECISIONS = ("32-true", "bf16-mixed")  # weights stay float32, and so do the frequencies of the rotary positions
STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass
class SpeedSettings:
    """Where and how a run computes.

    Attributes:
        accelerator: "auto", "cpu", "gpu".
        devices: processes per machine; 0 takes every device.
        nodes: machines.
        strategy: "auto", "ddp" or "fsdp".
        micro_batch_size: sequences per forward pass; 0 takes all of a device's share of the batch.
        attention: see `text_lm.model.build_model`.
        compile: `torch.compile` the model.
        checkpoint_activations: recompute blocks in the backward pass: less memory, a third more work.
        n_workers: processes that read data.
        checkpoint_every: steps between checkpoints.
        log_every: steps between lines of ``metrics.jsonl``.
        peak_flops: of one device, for the MFU; 0 looks the device up.
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"
    micro_batch_size: int = 0
    attention: str = "sdpa"
    compile: bool = False
    checkpoint_activations: bool = False
    n_workers: int = 0
    checkpoint_every: int = 1000
    log_every: int = 10
    peak_flops: float = 0.0

    def __post_init__(self) -> None:
        if self.strategy not in STRATEGIES:
            raise CurationError(f"speed.strategy {self.strategy!r} is unknown; use {', '.join(STRATEGIES)}")
        for name in ("checkpoint_every", "log_every", "nodes"):
            if getattr(self, name) < 1:
                raise CurationError(f"speed.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("devices", "micro_batch_size", "n_workers"):
            if getattr(self, name) < 0:
                raise CurationError(f"speed.{name} is {getattr(self, name)}; it must not be negative")


@dataclass
class TrainSettings:
    """A training run. Those before ``speed`` change the numbers, ``speed`` only how fast they come.

    Attributes:
        model: shape of the model.
        tokens: token budget; the run takes the whole steps that fit into it.
        batch_size: sequences per optimiser step, over all devices.
        cross_documents: let attention cross the documents packed into one sequence.
        learning_rate: peak.
        schedule, warmup, final_lr, decay: see `text_lm.schedules.schedule`, in steps; warmup and decay below 1 are
            shares of the run.
        betas, eps, weight_decay: AdamW's; norms are not decayed.
        clip: greatest gradient norm; 0 switches clipping off.
        z_loss: weight of the z-loss; 0 switches it off.
        precision: "32-true", or "bf16-mixed" (float32 weights, bfloat16 products).
        seed: of the initial weights and of the order of the data.
        speed: devices, compilation, workers, ...
    """

    model: ModelSettings = field(default_factory=ModelSettings)
    tokens: int = 1_000_000
    batch_size: int = 16
    cross_documents: bool = False
    learning_rate: float = 3e-3
    schedule: str = "cosine"
    warmup: float = 0.05
    final_lr: float = 0.1
    decay: float = 0.2
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    z_loss: float = 0.0
    precision: str = "32-true"
    seed: int = 0
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise CurationError(f"precision {self.precision!r} is unknown; use {', '.join(PRECISIONS)}")
        for name in ("learning_rate", "eps"):
            if getattr(self, name) <= 0:
                raise CurationError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("weight_decay", "clip", "z_loss", "warmup", "decay"):
            if getattr(self, name) < 0:
                raise CurationError(f"{name} is {getattr(self, name)}; it must not be negative")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise CurationError(f"betas is {list(self.betas)}; AdamW needs two numbers in [0, 1)")
        if self.batch_size < 1:
            raise CurationError(f"batch_size {self.batch_size} must be at least 1 sequence")
        if self.tokens < self.tokens_per_step:
            raise CurationError(
                f"the budget of {self.tokens:,} tokens is less than one step of {self.batch_size} x "
                f"{self.model.context} = {self.tokens_per_step:,}; raise tokens or lower batch_size"
            )

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.model.context

    @property
    def steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def warmup_steps(self) -> int:
        return _steps(self.warmup, self.steps)

    @property
    def decay_steps(self) -> int:
        return _steps(self.decay, self.steps)

    def science(self) -> dict[str, Any]:
        """The settings that change the numbers: two runs that share them and the data may be resumed as one."""
        content = asdict(self)
        content.pop("speed")
        return content

    def digest(self) -> str:
        return digest_json(self.science())


def _steps(value: float, steps: int) -> int:
    return int(value * steps) if value < 1 else int(value)


def load_settings(path: str | Path | None = None, overrides: list[str] | None = None) -> TrainSettings:
    """Settings from a YAML file, then ``key=value`` overrides such as ``model.width=256``.

    ``model: small.yaml`` takes the shape from another file: relative to the first one, or to where one is when it
    is an override.

    Raises:
        CurationError: no such file, an unknown setting, or a value of another kind.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    given: Any = OmegaConf.create()
    try:
        if path is not None:
            path = Path(path)
            given = _read_yaml(path)
            if isinstance(given.get("model"), str):
                given.model = _read_yaml(path.parent / given.model)
        changes: Any = OmegaConf.from_dotlist(overrides or [])
        if isinstance(changes.get("model"), str):
            changes.model = _read_yaml(Path(changes.model))
        given = OmegaConf.merge(given, changes)
        content: Any = OmegaConf.to_container(given, resolve=True)
        return settings_from(content)
    except (OmegaConfBaseException, YAMLError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CurationError(f"settings {path or 'on the command line'}: {reason}") from error


def settings_from(content: dict[str, Any]) -> TrainSettings:
    """Settings from a plain nested dict, every key and type checked."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for part in ("model", "speed"):
        if not isinstance(content.get(part, {}), dict):
            raise CurationError(f"setting {part} is {content[part]!r}; it needs key: value lines of its own")
    budget = content.get("tokens")
    if isinstance(budget, float) and budget.is_integer():  # 1e9 is a float in YAML
        content = {**content, "tokens": int(budget)}
    try:
        typed = OmegaConf.merge(OmegaConf.structured(TrainSettings), content)
        plain: Any = OmegaConf.to_container(typed, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or getattr(error, "key", None)
        reason = str(error).strip().splitlines()[0]
        raise CurationError(f"setting {key}: {reason}") from error
    return TrainSettings(
        **{
            **plain,
            "betas": tuple(plain["betas"]),
            "model": ModelSettings(**plain["model"]),
            "speed": SpeedSettings(**plain["speed"]),
        }
    )


def _read_yaml(path: Path) -> Any:
    from omegaconf import DictConfig, OmegaConf

    try:
        content = OmegaConf.load(path)
    except OSError as error:
        raise CurationError(f"settings {path} cannot be read: {error.strerror}") from error
    if not isinstance(content, DictConfig):
        raise CurationError(f"settings {path} must hold key: value lines")
    return content
