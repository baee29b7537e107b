"""The tree of ``configs/`` as Hydra composes it; a misspelt key is an error that names the nearest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundation.errors import CurationError
from foundation.settings import CONFIGS, nearest_name


def _keys(config: Any, prefix: str = "") -> set[str]:
    """Dotted names of all settings, sections included; a mapping behind an interpolation is followed."""
    found: set[str] = set()
    for key in config:
        name = f"{prefix}{key}"
        found.add(name)
        if hasattr(config[key], "keys"):
            found |= _keys(config[key], f"{name}.")
    return found


def compose(overrides: Sequence[str] = (), configs: Path = CONFIGS) -> dict[str, Any]:
    """The whole, resolved config that ``overrides`` give, as on the command line.

    Raises:
        CurationError: an unknown key or choice, with the nearest one named, or a value that cannot be read.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise CurationError(f"cannot read {error.override!r}: write it as key=value") from error
    groups = {
        path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in configs.iterdir() if path.is_dir()
    }
    choices = [item for item in parsed if item.key_or_group in groups]
    for item in choices:
        if item.value() not in groups[item.key_or_group]:
            hint = nearest_name(str(item.value()), groups[item.key_or_group])
            raise CurationError(f"there is no {item.key_or_group}={item.value()}; {hint}")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs.absolute()), version_base="1.3"):
            plain = hydra_compose("config", [item.input_line or "" for item in choices])
            known = _keys(plain) | set(groups)
            for item in parsed:
                if item.is_add() or item.is_force_add():
                    continue  # a new key on purpose: whoever reads the section refuses what it does not know
                if item.key_or_group not in known and not item.key_or_group.startswith("hydra"):
                    hint = nearest_name(item.key_or_group, known)
                    raise CurationError(f"{item.key_or_group} is no setting; {hint}")
            config = OmegaConf.to_container(hydra_compose("config", list(overrides)), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise CurationError(" ".join(str(error).split())) from error
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}
