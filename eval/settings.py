"""Settings as commented dataclasses: each field carries its help, which is also the help of the command line."""

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any

from foundation.errors import CurationError


def setting(default: Any, comment: str) -> Any:
    """A field with a default and a comment."""
    if isinstance(default, tuple):  # a list's default: a list itself may not be one
        return field(default_factory=lambda: list(default), metadata={"help": comment})
    return field(default=default, metadata={"help": comment})


@dataclass
class RunSettings:
    """What every evaluation of a run shares."""

    model: str = setting("", "folder with config.json and model.safetensors; timm:NAME; random:NAME; package.mod:func")
    weights: str = setting("", "safetensors for timm:NAME")
    image_size: int = setting(0, "pixels; 0 takes the model's own")
    device: str = setting("auto", "cpu, cuda, ...; auto takes a GPU where there is one")
    precision: str = setting("float32", "of the model: float32 or bfloat16")
    batch_size: int = setting(64, "images per forward pass")
    n_workers: int = setting(0, "processes that decode images")
    root: str = setting("", "folder of all datasets; empty: the environment variable EVAL_DATA, else data")
    cache: str = setting("", "folder for features, so that they are computed once; empty: not kept on disk")
    feature_dtype: str = setting("float32", "of kept features: float32 or float16")
    max_bad: float = setting(0.01, "share of a dataset's images that may be unreadable")
    resamples: int = setting(1000, "bootstrap draws of every interval")
    seed: int = setting(0, "of everything random")
    progress: bool = setting(True, "show progress bars, on a terminal")


def describe(kind: type) -> str:
    """The fields of a settings class: name, default, comment."""
    lines = []
    for entry in fields(kind):
        lines.append(f"{entry.name}={_shown(entry)}\n    {entry.metadata.get('help', '')}")
    return "\n".join(lines)


def fill(kind: type, given: Mapping[str, Any]) -> Any:
    """An instance of a settings class from plain values, keys and types checked.

    A list may be given as text with commas: ``ks=10,20``.

    Raises:
        CurationError: an unknown key (the message lists the known ones), or a value of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = {entry.name: entry for entry in fields(kind)}
    content = {}
    for key, value in given.items():
        if key not in known:
            raise CurationError(f"unknown setting {key!r}; there are {', '.join(known)}")
        if str(known[key].type).startswith("list") and not isinstance(value, (list, tuple)):
            value = [part.strip() for part in str(value).split(",") if part.strip()]
        content[key] = value
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), content))
    except OmegaConfBaseException as error:
        where = getattr(error, "full_key", None) or getattr(error, "key", None)
        raise CurationError(f"setting {where}: {str(error).strip().splitlines()[0]}") from error


def parse(arguments: list[str]) -> dict[str, Any]:
    """``key=value`` arguments as a dict; values are read as YAML.

    Raises:
        CurationError: an argument without "=", or a broken value.
    """
    import yaml

    found: dict[str, Any] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise CurationError(f"{argument!r} is no key=value")
        try:
            found[key] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise CurationError(f"the value of {key} cannot be read: {value!r}") from error
    return found


def _shown(entry: "Field[Any]") -> str:
    value = entry.default_factory() if entry.default_factory is not MISSING else entry.default
    return ",".join(str(part) for part in value) if isinstance(value, list) else str(value)
