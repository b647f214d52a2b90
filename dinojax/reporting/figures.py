"""The figures of a run and of a report: ROC curves, and losses where a protocol has epochs."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from dinojax.reporting import plots, roc
from dinojax.reporting.lettering import MISSING, drawable
from dinojax.reporting.predictions import positive_text, questions
from dinojax.reporting.render import Picture
from dinojax.reporting.results import Result, by_task


def draw_run(run: Result, folder: Path) -> None:
    """Writes a run's `roc.png` (and `roc_2.png`, ... of many classes), and `losses.png` where it has epochs."""
    folder.mkdir(exist_ok=True)
    parts = {f"fold {fold}": rows for fold, rows in run.test.groupby("fold")}
    if len(parts) > 1:
        parts = {"all folds": run.test, **parts}
    curves = [roc.Curve(name, questions(rows, run.classes)) for name, rows in parts.items()]
    task, starting_point, protocol, _ = run.key
    title = f"{task}, {starting_point}, {protocol}"
    baseline = [] if run.baseline is None else _curves([run.baseline])
    for place, page in enumerate(roc.pages([*curves, *baseline]), start=1):
        file = folder / ("roc.png" if place == 1 else f"roc_{place}.png")
        roc.plot_roc(page, f"{title}: test cases; {positive_text(curves[0].questions)}", file)
    _draw_losses(run, title, folder / "losses.png")


def draw_comparison(runs: Sequence[Result], folder: Path) -> dict[str, list[Picture]]:
    """Draws each task's ROC curves, all its runs together, and the losses of each run that has them."""
    pictures: dict[str, list[Picture]] = {}
    file = _free_names(folder)
    for task, of_task in by_task(runs).items():
        pictures[task] = _draw_task(task, of_task, file)
        for name, run in zip(run_names(of_task), of_task, strict=True):
            if run.history is not None:
                path = file(f"losses_{'_'.join(map(str, run.key))}")
                _draw_losses(run, f"{task}, {name}", path)
                caption = f"Losses of each fold's chosen setting, {task}, {name}"
                pictures[task].append(Picture(path, caption + _note([task, name])))
    return pictures


def _draw_task(task: str, runs: Sequence[Result], file: Callable[[str], Path]) -> list[Picture]:
    """The ROC curves of a task's runs, a figure or several."""
    pictures, curves = [], _curves(runs)
    cases = "test cases of all folds" if len(runs[0].folds) > 1 else "test cases of its one fold"
    for page in roc.pages(curves):
        path, names = file(f"roc_{task}"), [question.name for question in page[0].questions]
        roc.plot_roc(page, f"{task}: {cases}; {positive_text(curves[0].questions)}", path)
        caption = f"ROC of the {cases}, {task}: {', '.join(names)}"
        pictures.append(Picture(path, caption + _note([task, *names, *(curve.name for curve in curves)])))
    return pictures


def _note(texts: Sequence[str]) -> str:
    """What a caption adds where a figure cannot show its text as it is."""
    missing = any(MISSING in drawable(text) for text in texts)
    return f"; {MISSING} stands for letters that no font of this machine has" if missing else ""


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


def _curves(runs: Sequence[Result]) -> list[roc.Curve]:
    return [
        roc.Curve(name, questions(run.test, run.classes), muted=run.is_baseline)
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
        # File systems allow 255 bytes; a letter may take four.
        slug = re.sub(r"[^\w.-]+", "_", text).encode()[:200].decode(errors="ignore")
        free, number = slug, 1
        while free.lower() in taken:
            number += 1
            free = f"{slug}_{number}"
        taken.add(free.lower())
        return folder / f"{free}.png"

    return name
