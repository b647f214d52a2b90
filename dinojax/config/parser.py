"""Reads a verb's configuration, a frozen dataclass, from YAML and the command line by jsonargparse.

Presets are the YAML files in `configs/`. Any key may be given on the command line (`--optim.lr 1e-4`), types are
checked, and an unknown key is refused by name. `--help` and `--print_config` list everything.
"""

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import jsonargparse

from dinojax.errors import UsageError

T = TypeVar("T")


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    def _expand_help(self, action: argparse.Action) -> str:
        return _with_bounds(super()._expand_help(action))


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's parser; a mistake raises a `UsageError` of one line instead of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        del ex
        raise UsageError(f"{_with_bounds(' '.join(str(message).split()))} (see {self.prog} --help)")


def parse(config: type[T], arguments: Sequence[str], verb: str, *, positional: bool = False) -> T:
    """Reads a verb's configuration from `--config` files and keys on the command line.

    Args:
      config: a frozen dataclass; the first line of its docstring becomes the help's.
      arguments: the command line after the verb.
      positional: fields without a default are given by place rather than by name.

    Raises:
      UsageError: an unknown key, a wrong type, a missing key or an unreadable file, by name.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=f"python -m dinojax {verb}", allow_abbrev=False, formatter_class=_HelpFormatter)
    parser.add_argument("--config", action="config", help="a YAML file of keys, such as a preset from configs/")
    parser.add_class_arguments(config, nested_key=None, as_positional=positional)
    values = parser.instantiate(parser.parse_args(list(arguments)))
    return config(**{field.name: values[field.name] for field in dataclasses.fields(config)})  # type: ignore[arg-type]


def _with_bounds(text: str) -> str:
    """Types with bounds as a reader wants them: `int above 0` rather than `Annotated[int, above 0]`."""
    return re.sub(r"(?:typing\.)?Annotated\[(\w+(?:\[.*?\])?), (.*?)\]", r"\1 \2", text)


def names(listed: str) -> list[str]:
    """Names that are separated by commas, as in `accept_changes`; none of an empty text."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def nested(config: object) -> dict[str, Any]:
    """A configuration as a YAML file holds it: sections are dicts, and tuples are lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))  # type: ignore[call-overload]


def flatten(config: object) -> dict[str, Any]:
    """A configuration, or the sections of a YAML file, as one level: `{"optim.lr": 1e-3, ...}`."""
    flat: dict[str, Any] = {}
    for key, value in (config if isinstance(config, dict) else nested(config)).items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        else:
            flat[key] = value
    return flat
