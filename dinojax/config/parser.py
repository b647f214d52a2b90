"""Reads a verb's configuration, a frozen dataclass, from presets, YAML and the command line by jsonargparse.

Any key may be given on the command line (`--optim.lr 1e-4`), types are checked, and an unknown key is refused by name.
`--help` and `--print_config` list everything.
"""

import argparse
import dataclasses
import difflib
import json
import re
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jsonargparse
import yaml

from dinojax.errors import UsageError

T = TypeVar("T")

_INSTALLED, _CLONED = Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs"


class _HelpFormatter(jsonargparse.DefaultHelpFormatter):
    def _expand_help(self, action: argparse.Action) -> str:
        return _with_bounds(super()._expand_help(action))


class Parser(jsonargparse.ArgumentParser):
    """jsonargparse's parser; a mistake raises a `UsageError` of one line instead of printing the usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        del ex
        unknown = re.search(r"unrecognized arguments: (--[\w.]+)", str(message))
        near = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1) if unknown else []
        advice = f"did you mean {near[0]}? " if near else ""
        text = _plain_mistake(" ".join(str(message).split()), self._option_string_actions)
        raise UsageError(f"{_with_bounds(text)} ({advice}see {self.prog} --help)")


_MISTAKE = re.compile(r'Parser key "([\w.]+)": (.*?)(?:Given value: |Got value: )(.*)')
_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "NoneType": "null"}


def _plain_mistake(text: str, options: Collection[str]) -> str:
    """A value that does not fit its key, in words rather than in the types of Python."""
    if required := re.fullmatch(r"the following arguments are required: (.*)", text):
        keys = (f"--{name}" if f"--{name}" in options else name.upper() for name in required[1].split(", "))
        return f"required, and not given: {', '.join(keys)}"
    if not (found := _MISTAKE.search(text)) or not ("Expected a" in found[2] or "Subtypes" in found[2]):
        return text
    key, expected, given = found[1], found[2], found[3].strip()
    listed = re.findall(r"Expected a typing\.Literal\[(.*?)\]", expected)
    names = [name.strip("'\"") for part in listed for name in part.split(", ")]
    types = [_WORDS[name] for name in re.findall(r"Expected a <class '(\w+)'>", expected) if name in _WORDS]
    if not names and not types:
        return text
    if not names:
        return f"--{key} {given}: it must be {' or '.join(types)}"
    near = difflib.get_close_matches(given, names, n=1)
    advice = f"; did you mean {near[0]}?" if near else ""
    return f"--{key} {given}: choose from {', '.join([*names, *types])}{advice}"


def parse(config: type[T], arguments: Sequence[str], verb: str) -> T:
    """Reads a verb's configuration from `--config` presets or files and keys on the command line.

    Args:
      config: a frozen dataclass; the first line of its docstring becomes the help's.
      arguments: the command line after the verb. A key that takes a list takes one value, or several with commas, too.
      verb: its first word names the folder of its presets.

    Raises:
      UsageError: an unknown key, a wrong type, a missing key, a value out of its bounds or an unreadable file, by name;
        or a key of `model` on the command line of a run that has its model from `init`.
    """
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(prog=f"dinojax {verb}", allow_abbrev=False, formatter_class=_HelpFormatter)
    named = ", ".join(presets(verb)) or "none yet"
    parser.add_argument("--config", action="config", help=f"a preset ({named}), or a YAML file of keys")
    by_place = {field.name: field for field in dataclasses.fields(config) if "positional" in field.metadata}  # type: ignore[arg-type]
    hints = typing.get_type_hints(config)
    for name, field in by_place.items():
        several = typing.get_origin(hints[name]) is tuple
        parser.add_argument(name, help=field.metadata["positional"], nargs="+" if several else None)
    parser.add_class_arguments(config, nested_key=None, skip=set(by_place))
    values = parser.instantiate(parser.parse_args(list(_prepared(arguments, verb, dict(_lists(hints))))))
    made = config(**{field.name: _plain(values[field.name]) for field in dataclasses.fields(config)})  # type: ignore[arg-type]
    unused = [key for key in (argument.partition("=")[0] for argument in arguments) if key.startswith("--model.")]
    if unused and (init := getattr(made, "init", None)) is not None:
        raise UsageError(f"--init {init} brings its own model, which {unused[0]} cannot change; leave one of them out")
    return made


def presets(verb: str) -> dict[str, Path]:
    """The presets of a verb by name: the YAML files that the package brings along."""
    folder = (_INSTALLED if _INSTALLED.is_dir() else _CLONED) / verb.split()[0]
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def to_arguments(keys: Mapping[str, Any]) -> list[str]:
    """The command line that gives the same keys; sections are dicts, `{"optim": {"lr": 1e-4}}`.

    >>> to_arguments({"data": "images", "optim": {"lr": 1e-4}, "lrs": (1e-5, 1e-6), "init": None})
    ['--data=images', '--optim.lr=0.0001', '--lrs=[1e-05, 1e-06]', '--init=null']
    """
    return [f"--{key}={_text(value)}" for key, value in flatten(keys).items()]


def _text(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _lists(hints: Mapping[str, Any], section: str = "") -> Iterator[tuple[str, type]]:
    """Keys of a configuration that take any number of values, with the values' type."""
    for name, hint in hints.items():
        if dataclasses.is_dataclass(hint):
            yield from _lists(typing.get_type_hints(hint), f"{section}{name}.")
        for part in (hint, *typing.get_args(hint)):  # of a union such as `tuple[str, ...] | None`, its parts
            if typing.get_origin(part) is tuple and typing.get_args(part)[-1] is Ellipsis:
                yield f"--{section}{name}", typing.get_args(part)[0]


def _prepared(arguments: Sequence[str], verb: str, lists: Mapping[str, type]) -> Iterator[str]:
    """The command line with presets as paths, and every list in brackets."""
    pending = ""
    for argument in arguments:
        key, equals, value = (pending, "=", argument) if pending else argument.partition("=")
        pending = ""
        if key not in {"--config", *lists}:
            yield argument
        elif not equals:
            pending = key
        elif key == "--config":
            yield f"--config={_config_file(value, verb)}"
        elif value.startswith("["):
            yield f"{key}={value}"
        elif lists[key] is str:  # quoted: YAML would take `1e-3`, `null` and `a: b` for something else
            yield f"{key}={json.dumps(value.split(','), ensure_ascii=False)}"
        else:
            yield f"{key}=[{value}]"
    if pending:
        yield pending


def _config_file(given: str, verb: str) -> Path:
    known, path = presets(verb), Path(given).expanduser()
    if not path.is_file():
        if given in known:
            return known[given]
        listed = f"the presets of {verb} are {', '.join(known)}" if known else f"{verb} has no presets"
        raise UsageError(f"--config {given}: there is no such file, and {listed}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {given}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        what = "is empty" if content is None else "holds no keys"
        raise UsageError(f"--config {given}: {what}; it must hold lines such as `batch_size: 64`")
    return path


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
    for key, value in (config if isinstance(config, Mapping) else nested(config)).items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{name}": inner for name, inner in flatten(value).items()}
        else:
            flat[key] = value
    return flat
