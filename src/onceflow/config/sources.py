"""Where settings come from: a file and the environment; what is not understood there is refused, in one line."""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import EnvSettingsSource

from onceflow.config.settings import CLIENT, PREFIX, SETTINGS, Settings, flow_name
from onceflow.config.shown import allowed_of, choices_of, flat, masked, text_of
from onceflow.errors import ConfigError

FILE = "onceflow.toml"
OTHER_VARIABLES = frozenset(PREFIX + name for name in ("CONFIG", "TEST_KAFKA", "CACHE", "KAFKA_HEAP"))

# Kubernetes puts these into every pod beside a Service named "onceflow"; they are nobody's typo.
_SERVICE_LINK = re.compile(r"\w+_SERVICE_(HOST|PORT)(_\w+)?=|\w+_PORT_\d+_(TCP|UDP)|\w+=(tcp|udp)://")


@dataclass(frozen=True, slots=True)
class _Given:
    value: Any
    origin: str


def load(
    flow: str | None = None, *, environ: Mapping[str, str] = os.environ, path: Path | None = None
) -> Settings:
    """The settings from the file and the environment.

    The file is `path`, or what ONCEFLOW_CONFIG names (either must exist), or `onceflow.toml` in the working
    directory if there is one. `flow` gives the state directory its default, and its name is checked.
    """
    named = path or (Path(environ["ONCEFLOW_CONFIG"]) if environ.get("ONCEFLOW_CONFIG") else None)
    given = _from_file(named or Path(FILE), must_exist=named is not None) | _from_environment(environ)
    values = {name: each.value for name, each in given.items()}
    try:
        settings = Settings(**_tree({"state_dir": "state" if flow is None else f"state/{flow}"} | values))
    except ValidationError as error:
        raise ConfigError(_one_line(error, given)) from None
    settings._origins.update({name: each.origin for name, each in given.items()})
    if flow is not None:
        flow_name(flow, settings)
    return settings


def _from_file(path: Path, *, must_exist: bool) -> dict[str, _Given]:
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        if must_exist:
            raise ConfigError(f"configuration file {path} is missing: make it or name another") from None
        return {}
    except OSError as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise ConfigError(f"configuration file {path} is not TOML: {error}") from error
    given: dict[str, _Given] = {}
    for name, value in flat(table):
        if name not in SETTINGS and not name.startswith(CLIENT):
            raise ConfigError(f"{path}: there is no setting {name!r}; {_nearest(name, SETTINGS)}")
        if name in given:
            raise ConfigError(f"{path}: {name} is given twice, as a table and as a quoted name: remove one")
        given[name] = _Given(value, str(path))
    return given


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Given]:
    variables = {_variable(name): name for name in SETTINGS if name + "." != CLIENT}
    known = [*variables, _variable(CLIENT + "sasl_mechanism")]
    ours: dict[str, str | None] = {}
    for name, value in environ.items():
        if name in variables or name.startswith(_variable(CLIENT)):
            ours[name.lower()] = value
        elif name in OTHER_VARIABLES or _SERVICE_LINK.match(f"{name}={value}"):
            continue
        elif name.startswith(PREFIX):
            raise ConfigError(f"environment: {name} is not a setting; {_nearest(name, known)}")
    source = EnvSettingsSource(Settings)
    source.env_vars = ours  # instead of this process's, which it took by itself
    given = {}
    for name, value in flat(source()):
        property_ = name.removeprefix(CLIENT).replace("_", ".") if name.startswith(CLIENT) else ""
        given[CLIENT + property_ if property_ else name] = _Given(value, f"environment ({_variable(name)})")
    return given


def _variable(name: str) -> str:
    return PREFIX + name.replace(".", "__").upper()


def _tree(values: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *tables, name = path.split(".", 2 if path.startswith(CLIENT) else -1)
        table = tree
        for each in tables:
            table = table.setdefault(each, {})
        # No setting of ours is a truth value, and pydantic would take `true` for 1.
        table[name] = str(value).lower() if isinstance(value, bool) else value
    return tree


def _one_line(error: ValidationError, given: Mapping[str, _Given]) -> str:
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    path = context.get("setting") or ".".join(part for part in first["loc"] if isinstance(part, str))
    field = SETTINGS.get(path, SETTINGS["kafka.client"])
    must = f"must be {context.get('allowed') or allowed_of(field)}"
    if path in given:
        value = given[path].value
        close = get_close_matches(str(value), choices_of(field), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{path} = {masked(path, repr(value)[:200])}, from {given[path].origin}: {must}{hint}"
    if field.is_required():
        return f"{path} is missing: {must}"
    return f"{path} = {text_of(field.get_default()) or 'nothing'}, the default: {must}"


def _nearest(name: str, names: Iterable[str]) -> str:
    if inside := [each for each in names if each.startswith((f"{name}.", f"{name}__"))]:
        return f"it is a table of settings, such as {inside[0]!r}"
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "`onceflow config` lists all"
