"""What a report says of several runs: its table, its sentences and its figures."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinojax.report import plots
from dinojax.report import predictions as results
from dinojax.report.render import Block, Heading, Picture, Table, Text
from dinojax.report.results import Run, by_task

# What may differ between runs of one task without making the comparison one of recipes.
_RECIPE = ("image_size", "normalisation", "epochs", "epoch_selection", "weight_decay", "classifier", "augment")
READING = (
    "Area under the ROC curve of the test cases, for each fold; with more than two classes the mean over classes of "
    "each against the rest. Mean ± SD is over folds. The SD over folds is not a confidence interval: it describes how "
    "the folds differ, and their training sets overlap. Pooled is the AUC of all folds' test cases together, each "
    "scored by a model that did not train on it."
)
PUBLISHED = (
    "Selection 'published' takes one setting for all folds, the one with the best mean test AUC, as MediDino (2024) "
    "does. The test cases choose, so these AUCs are optimistic."
)
NESTED = (
    "Selection 'nested' takes for every fold the setting with the lowest validation loss of that fold; no test case "
    "has a part in it."
)


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The one table, in full precision: a row a run, and after those of a task its baselines.

    Returns:
      Keys `task`, `starting_point`, `seed` (None for a baseline), `kind` ('run' or 'baseline'), `folds` [{fold, auc}],
      `mean_auc`, `sd_auc`, `pooled_auc`, `cases`, and of a run `selection`, `epochs`, `normalisation`, `image_size`.
    """
    rows = []
    for task, of_task in by_task(runs).items():
        for run in of_task:
            facts = {name: run.facts[name] for name in ("epochs", "normalisation", "image_size")}
            rows.append(
                {
                    **{"task": task, "starting_point": run.key[1], "seed": run.key[2], "kind": "run"},
                    **run.summary.as_json(),
                    **{"cases": len(run.test), "selection": run.facts["selection"]["protocol"]},
                    **facts,
                }
            )
        # Pixels, folds and method are the same in all runs of a task.
        for name, (table, summary) in of_task[0].baselines.items():
            baseline = {"task": task, "starting_point": name, "seed": None, "kind": "baseline"}
            rows.append({**baseline, **summary.as_json(), "cases": len(table)})
    return rows


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for `table.csv`: `fold_1`, `fold_2`, ... for `folds`."""
    folds = {f"fold_{entry['fold']}": entry["auc"] for entry in row["folds"]}
    return {key: value for key, value in row.items() if key != "folds"} | folds


def draw(runs: Sequence[Run], folder: Path) -> dict[str, list[Picture]]:
    """Draws each task's ROC curves, all starting points in one figure, and each run's losses, into `folder`."""
    pictures: dict[str, list[Picture]] = {}
    for task, of_task in by_task(runs).items():
        classes = of_task[0].classes
        seeds = len({run.key[2] for run in of_task}) > 1
        curves = [plots.Curve(_name(run, seeds), *results.labels_and_scores(run.test, classes)) for run in of_task]
        for name, (table, _) in of_task[0].baselines.items():
            curves.append(plots.Curve(_readable(name), *results.labels_and_scores(table, classes), muted=True))
        path = folder / f"roc_{_slug(task)}.png"
        plots.plot_roc(curves, classes, f"{task}: test cases of all folds", path)
        pictures[task] = [Picture(path, f"ROC of the test cases of all folds, {task}")]
        for run in of_task:
            path = folder / f"losses_{_slug('_'.join(map(str, run.key)))}.png"
            title = f"{task} from {_name(run, seeds)}: losses of the chosen settings"
            plots.plot_losses(run.history, {entry["fold"]: entry["epoch"] for entry in _chosen(run)}, title, path)
            pictures[task].append(
                Picture(path, f"Losses of each fold's chosen setting, {task} from {_name(run, seeds)}")
            )
    return pictures


def compose(runs: Sequence[Run], pictures: Mapping[str, Sequence[Picture]]) -> list[Block]:
    """The report, from the table on."""
    rows = rows_of(runs)
    blocks: list[Block] = [Heading(1, "Starting points compared, fold by fold"), _main_table(rows), Text(READING)]
    protocols = {run.facts["selection"]["protocol"] for run in runs}
    blocks += [Text(text) for name, text in (("nested", NESTED), ("published", PUBLISHED)) if name in protocols]
    for row in rows:
        if without := [str(entry["fold"]) for entry in row["folds"] if entry["auc"] is None]:
            name = f"{row['task']}, {_readable(row['starting_point'])}"
            blocks.append(Text(f"{name}: fold {', '.join(without)} has no AUC, as its test cases lack a class."))
    blocks += [Heading(2, "How it was done"), _recipes(runs)]
    for task, of_task in by_task(runs).items():
        blocks += _task(task, of_task)
        blocks += pictures[task]
    return blocks


def _main_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    folds = sorted({entry["fold"] for row in rows for entry in row["folds"]})
    header = ["task", "starting point", "seed", *(f"fold {fold}" for fold in folds), "mean ± SD", "pooled"]
    cells = []
    for row in rows:
        aucs = {entry["fold"]: _number(entry["auc"]) for entry in row["folds"]}
        name = row["starting_point"] if row["kind"] == "run" else f"{_readable(row['starting_point'])} (baseline)"
        seed = "" if row["seed"] is None else str(row["seed"])
        spread = f"{_number(row['mean_auc'])} ± {_number(row['sd_auc'])}"
        cells.append(
            [row["task"], name, seed, *(aucs.get(fold, "") for fold in folds), spread, _number(row["pooled_auc"])]
        )
    return Table(header, cells)


def _recipes(runs: Sequence[Run]) -> Table:
    header = ["task", "starting point", "seed", "selection", "settings", "epochs", "weights kept", "pixels"]
    header += ["normalisation", "head", "weight decay", "model"]
    rows = []
    for run in runs:
        facts, head, model = run.facts, run.facts["classifier"], run.facts["model"]
        layers = f"hidden {head['hidden']}" if head["hidden"] else "linear"
        rows.append(
            [
                *(str(part) for part in run.key),
                facts["selection"]["protocol"],
                ", ".join(setting["setting"] for setting in facts["settings"]),
                str(facts["epochs"]),
                facts["epoch_selection"].replace("_", " "),
                str(facts["image_size"]),
                facts["normalisation"],
                layers + (", norm applied twice" if head["renormalise"] else ""),
                f"{facts['weight_decay']:g}",
                f"{model['name']}, {_form(model)}, channels {model['channels']}",
            ]
        )
    return Table(header, rows)


def _form(model: Mapping[str, Any]) -> str:
    if "filters" in model:  # a ResNet
        return f"width {4 * model['filters'][-1]}, blocks {'-'.join(map(str, model['blocks']))}"
    return f"width {model['width']}, depth {model['depth']}"


def _task(task: str, runs: Sequence[Run]) -> list[Block]:
    labels = runs[0].test["label"]
    counts = ", ".join(f"{(labels == name).sum()} {name}" for name in runs[0].classes)
    blocks: list[Block] = [
        Heading(2, task),
        Text(f"{len(labels)} test cases over {len(_chosen(runs[0]))} folds: {counts}."),
    ]
    differing = [name for name in _RECIPE if any(run.facts[name] != runs[0].facts[name] for run in runs)]
    if differing:
        names = ", ".join(name.replace("_", " ") for name in differing)
        blocks.append(Text(f"These runs differ in more than their starting point: {names}."))
    header = ["starting point", "seed", "fold", "setting", "epoch", "threshold", "AUC"]
    rows = [
        [
            *(str(part) for part in run.key[1:]),
            *(str(entry[name]) for name in ("fold", "setting", "epoch")),
            *(_number(entry[name]) for name in ("threshold", "auc")),
        ]
        for run in runs
        for entry in _chosen(run)
    ]
    note = "The selected settings and epochs. Thresholds are those with the largest Youden's J on the validation part."
    return [*blocks, Table(header, rows), Text(note)]


def _chosen(run: Run) -> list[dict[str, Any]]:
    return run.facts["selection"]["folds"]


def _name(run: Run, seeds: bool) -> str:
    return f"{run.key[1]}, seed {run.key[2]}" if seeds else run.key[1]


def _readable(baseline: str) -> str:
    match = re.fullmatch(r"logistic_pixels_(\d+)", baseline)
    return f"logistic regression on {match[1]}×{match[1]} pixels" if match else baseline


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)
