"""Metrics of a run sent to a service that draws them, beside `metrics.jsonl`.

A service is a function that returns a writer of (step, metrics); its package is an extra of ours and imported only
where it is asked for. A run that resumes continues in the same place: TensorBoard hides what was written after the
restored step; Weights & Biases, whose run has an id that follows from the directory, ignores steps that it has already;
MLflow's run, whose id lies in `mlflow_run.txt`, keeps both values of a step that was taken twice.
"""

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dinojax.errors import UsageError
from dinojax.runs.files import reason, write_text

Writer = Callable[[int, Mapping[str, float]], None]


def tensorboard(out: Path, config: Mapping[str, Any], start: int) -> Writer:
    """Writes event files to `tensorboard/` in the run's directory."""
    del config
    make = importlib.import_module("tensorboardX").SummaryWriter
    summary = make(str(out / "tensorboard"), purge_step=start + 1, flush_secs=1)  # a thread of its own writes

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            summary.add_scalar(name, value, step)

    return write


def wandb(out: Path, config: Mapping[str, Any], start: int) -> Writer:
    """Sends to Weights & Biases, as a run of the project `dinojax` named like the directory."""
    del start
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]
    run = importlib.import_module("wandb").init(
        project="dinojax", name=out.name, id=name, resume="allow", dir=str(out), config=dict(config)
    )
    return lambda step, metrics: run.log(dict(metrics), step=step)


def mlflow(out: Path, config: Mapping[str, Any], start: int) -> Writer:
    """Sends to MLflow, at the tracking URI that its own settings give."""
    del start
    client, known = importlib.import_module("mlflow"), out / "mlflow_run.txt"
    run = client.start_run(run_id=known.read_text().strip() if known.exists() else None, run_name=out.name)
    if not known.exists():
        write_text(known, f"{run.info.run_id}\n")
        client.log_params({key: str(value)[:250] for key, value in config.items()})
    return lambda step, metrics: client.log_metrics(dict(metrics), step=step)


_SERVICES: dict[str, tuple[Callable[[Path, Mapping[str, Any], int], Writer], str]] = {
    "tensorboard": (tensorboard, "tensorboardX"),
    "wandb": (wandb, "wandb"),
    "mlflow": (mlflow, "mlflow"),
}


def check_trackers(names: Sequence[str]) -> None:
    """Whether the packages of these services are installed.

    Raises:
      UsageError: one is not; names the command that installs it.
    """
    for name in names:
        if importlib.util.find_spec(_SERVICES[name][1]) is None:
            raise UsageError(f"log_to {name} needs the package {_SERVICES[name][1]}: pip install 'dinojax[{name}]'")


def open_trackers(names: Sequence[str], out: Path, config: Mapping[str, Any], start: int) -> Writer:
    """A writer to all of these services; one that fails is left out from then on, in one line, and the run continues.

    Args:
      names: of `tensorboard`, `wandb` and `mlflow`.
      out: the run's directory.
      config: what the services show of it, as one level.
      start: step after which the run begins or resumes.
    """
    writers: dict[str, Writer] = {}

    def guarded(name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever a service or the network leads to
            print(f"log_to {name} failed, the run continues without it: {reason(error)}", flush=True)
            writers.pop(name, None)
            return None

    for name in dict.fromkeys(names):
        opened = guarded(name, lambda make=_SERVICES[name][0]: make(out, config, start))
        if opened is not None:
            writers[name] = opened

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, writer in list(writers.items()):
            guarded(name, lambda writer=writer: writer(step, metrics))

    return write
