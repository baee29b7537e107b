"""The tree of ``configs/`` as Hydra composes it; a misspelt key is an error that names the nearest."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from experiments.engine.arms import CurationSettings
from experiments.engine.experiment import open_domain
from foundation.errors import CurationError, one_line
from foundation.settings import CONFIGS, nearest_name, setting_names


def _keys(config: Any, prefix: str = "") -> set[str]:
    """Dotted names of all settings, sections included; a mapping behind an interpolation is followed."""
    found: set[str] = set()
    for key in config:
        name = f"{prefix}{key}"
        found.add(name)
        if hasattr(config[key], "keys"):
            found |= _keys(config[key], f"{name}.")
    return found


def _fields(name: str) -> set[str]:
    """Dotted names of the settings that the dataclasses of an experiment know, in its files or not."""
    domain = open_domain(name)
    sections = {"pool": domain.pool_settings, "train": domain.train_settings, "evaluate": domain.evaluate_settings}
    sections["curation"] = CurationSettings
    return set().union(*(setting_names(kind, f"science.{section}") for section, kind in sections.items()))


@cache
def _written(configs: Path, choices: tuple[str, ...]) -> tuple[str, frozenset[str]]:
    """Name of the experiment that the choices of groups give, and what its files set: read once in a process."""
    from hydra import compose as hydra_compose

    plain = hydra_compose("config", list(choices))
    return plain["name"], frozenset(_keys(plain))


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
        str(path.relative_to(configs)): sorted(file.stem for file in path.glob("*.yaml"))
        for path in configs.rglob("*")
        if path.is_dir()
    }
    choices = [item for item in parsed if item.key_or_group in groups]
    for item in choices:
        if item.value() not in groups[item.key_or_group]:
            hint = nearest_name(str(item.value()), groups[item.key_or_group])
            raise CurationError(f"there is no {item.key_or_group}={item.value()}; {hint}")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(configs.absolute()), version_base="1.3"):
            name, inside_files = _written(configs.absolute(), tuple(item.input_line or "" for item in choices))
            written = inside_files | set(groups)
            known = written | _fields(name)
            words = []
            for item in parsed:
                key, word = item.key_or_group, item.input_line or ""
                # added on purpose: whoever reads the section refuses what it does not know
                if not item.is_add() and not item.is_force_add() and not key.startswith("hydra"):
                    if key not in known:
                        raise CurationError(f"{key} is no setting; {nearest_name(key, known)}")
                    # what has a default in the code stands in no file; of several keys at once, some may not
                    inside = isinstance(item.value(), dict)
                    word = f"++{word}" if key not in written or inside else word
                words.append(word)
            config = OmegaConf.to_container(hydra_compose("config", words), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise CurationError(one_line(error, None)) from error
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}
