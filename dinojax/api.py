"""The verbs as functions: the same keys, checks and files as the commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinojax import verbs
from dinojax.config.parser import to_arguments


def pretrain(*, data: str | Path, out: str | Path, preset: str | Path | None = None, **keys: Any) -> Path:
    """Self-supervised pre-training, as `dinojax pretrain`; the same call resumes.

    Args:
      data: a folder of images, or a manifest.
      out: the run's directory.
      preset: name of a preset, or a YAML file of keys.
      keys: any other key of `dinojax pretrain --help`; sections are dicts, as in `optim={"lr": 1e-4}`.

    Returns:
      The run's directory; `model` in it holds the teacher. With `check=True` nothing was written there.

    Raises:
      RunError: what the command would have printed; UsageError for wrong keys.
    """
    return _run("pretrain", preset, {"data": data, "out": out, **keys})


def finetune(*, data: str | Path, out: str | Path, preset: str | Path | None = None, **keys: Any) -> Path:
    """Fine-tunes one starting point on every fold, as `dinojax finetune`; arguments as of `pretrain`.

    Returns:
      The run's directory, with `results.json` and `predictions.csv`.
    """
    return _run("finetune", preset, {"data": data, "out": out, **keys})


def evaluate(
    protocol: str, *, data: str | Path, out: str | Path, preset: str | Path | None = None, **keys: Any
) -> Path:
    """Scores frozen features on every fold, as `dinojax evaluate PROTOCOL`; further arguments as of `pretrain`.

    Returns:
      The run's directory, with `results.json` and `predictions.csv`.
    """
    return _run(f"evaluate {protocol}", preset, {"data": data, "out": out, **keys})


def report(runs: Sequence[str | Path], *, out: str | Path, names: Sequence[str] | None = None) -> Path:
    """Writes one table and its plots from several runs, as `dinojax report`.

    Args:
      runs: directories of finished runs.
      out: the report's directory.
      names: what the report calls the starting points, one a run, in their order; by default as the runs do.

    Returns:
      The report's directory.

    Raises:
      RunError: what the command would have printed; UsageError for runs or names that cannot stand in one table.
    """
    keys = {"out": out, **({} if names is None else {"names": list(names)})}
    return verbs.run(["report", *map(str, runs), *to_arguments(keys)])


def _run(verb: str, preset: str | Path | None, keys: dict[str, Any]) -> Path:
    return verbs.run([*verb.split(), *([f"--config={preset}"] if preset else []), *to_arguments(keys)])
