"""The figures of a run and of a report: ROC curves, and losses where a protocol has epochs."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from dinojax.reporting import plots
from dinojax.reporting.predictions import questions
from dinojax.reporting.render import Picture
from dinojax.reporting.results import Result, baselines, by_task


def draw_run(run: Result, folder: Path) -> None:
    """Writes a run's `roc.png`, all folds and each alone, and `losses.png` where it has epochs."""
    folder.mkdir(exist_ok=True)
    parts = {"all folds": run.test} | {f"fold {fold}": rows for fold, rows in run.test.groupby("fold")}
    curves = [plots.Curve(name, questions(rows, run.classes)) for name, rows in parts.items()]
    task, starting_point, protocol, _ = run.key
    title = f"{task}, {starting_point}, {protocol}"
    plots.plot_roc([*curves, *_curves(baselines([run]))], f"{title}: test cases", folder / "roc.png")
    _draw_losses(run, title, folder / "losses.png")


def draw_comparison(runs: Sequence[Result], folder: Path) -> dict[str, list[Picture]]:
    """Draws each task's ROC curves, all its runs in one figure, and the losses of each run that has them."""
    pictures: dict[str, list[Picture]] = {}
    file = _free_names(folder)
    for task, of_task in by_task(runs).items():
        path = file(f"roc_{task}")
        plots.plot_roc(_curves(of_task), f"{task}: test cases of all folds", path)
        pictures[task] = [Picture(path, f"ROC of the test cases of all folds, {task}")]
        for name, run in zip(run_names(of_task), of_task, strict=True):
            if run.history is not None:
                path = file(f"losses_{'_'.join(map(str, run.key))}")
                _draw_losses(run, f"{task}, {name}", path)
                pictures[task].append(Picture(path, f"Losses of each fold's chosen setting, {task}, {name}"))
    return pictures


def run_names(runs: Sequence[Result]) -> list[str]:
    """What tells the runs of one task apart: the starting point, and protocol and seed where there are several."""
    own = [run.key for run in runs if not run.is_baseline]
    protocols, seeds = (len({key[place] for key in own}) > 1 for place in (2, 3))
    return [
        f"{starting_point} (baseline)"
        if run.is_baseline
        else f"{starting_point}{f', {protocol}' if protocols else ''}{f', seed {seed}' if seeds else ''}"
        for run, (_, starting_point, protocol, seed) in ((run, run.key) for run in runs)
    ]


def _curves(runs: Sequence[Result]) -> list[plots.Curve]:
    return [
        plots.Curve(name, questions(run.test, run.classes), muted=run.is_baseline)
        for name, run in zip(run_names(runs), runs, strict=True)
    ]


def _draw_losses(run: Result, title: str, path: Path) -> None:
    if run.history is not None:
        kept = {entry["fold"]: entry["epoch"] for entry in run.folds}
        plots.plot_losses(run.history, kept, f"{title}: losses of the chosen settings", path)


def _free_names(folder: Path) -> Callable[[str], Path]:
    """Makes file names of any text, no two the same, also where the file system ignores case."""
    taken: set[str] = set()

    def name(text: str) -> Path:
        slug = re.sub(r"[^\w.-]+", "_", text)
        numbered = (f"{slug}_{number}" for number in itertools.count(2))
        free = next(name for name in itertools.chain([slug], numbered) if name.lower() not in taken)
        taken.add(free.lower())
        return folder / f"{free}.png"

    return name
