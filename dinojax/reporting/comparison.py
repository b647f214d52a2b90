"""What a report says of several runs: its tables and sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from dinojax.reporting.figures import run_names
from dinojax.reporting.predictions import averaging_text, positive_text, questions
from dinojax.reporting.render import Block, Heading, Picture, Table, number
from dinojax.reporting.results import Result, baselines, by_task
from dinojax.reporting.selection import COMPUTED
from dinojax.reporting.statistics import mean_and_sd_text
from dinojax.reporting.units import pool

# Parts of a recipe that follow from the starting point: they may differ between runs that are compared.
_OF_STARTING_POINT = ("init", "model", "trained_parameters")
_KEY = ("task", "starting point", "protocol", "seed")
_FOLDS_A_TABLE, _RUNS_A_TABLE = 8, 5  # as a page of 1,000 px has room for
_SPREAD = ("mean_auc", "sd_auc", "pooled_auc", "pooled_accuracy")
_SHOWN_FACTS = ("read as", "images", "patients", "folds", "not read", "duplicates", "corpus")
READING = (
    "Area under the ROC curve of the test cases, for each fold; with more than two classes the mean over classes of "
    "each against the rest, and with several labels the mean over labels, each over the cases where it is known. "
    "Mean ± SD is over folds; where one fold alone has an AUC, it stands without an SD. The SD over folds is not a "
    "confidence interval: it describes how the folds differ, and their training sets overlap. Pooled is the AUC of all "
    "folds' test cases together, each scored by a model that did not train on it; accuracy is the share of them whose "
    "class has the highest score. A baseline is what the raw pixels reach on the same folds."
)
UNITS_NOTE = (
    "A volume's or a patient's score is the mean or the highest of its images' scores. The highest rises with the "
    "number of images, so that where the classes differ in that number, it measures the number, too."
)
SELECTION = (
    "Folds, mean ± SD and pooled AUC follow the selection that the run was asked for. Beside them stands the mean AUC "
    "by either selection, and how much the published one exceeds the nested one: that is what choosing on the test "
    "cases adds. It can be negative, as the published selection takes one setting for all folds."
)
NESTED = (
    "Selection 'nested' takes for every fold the setting that is best on that fold's validation part ({criteria}); no "
    "test case has a part in it."
)
PUBLISHED = (
    "Selection 'published' takes one setting for all folds, the one with the best mean test AUC, as MediDino (2024) "
    "does. The test cases choose, so these AUCs are optimistic."
)
_CRITERIA = {"val_loss": "lowest validation loss", "val_auc": "highest validation AUC"}


def rows_of(runs: Sequence[Result]) -> list[dict[str, Any]]:
    """The main table, in full precision: a row for each run, and after those of a task its baseline.

    Returns:
      Keys `task`, `starting_point`, `protocol`, `seed` (None for a baseline), `kind` ('run' or 'baseline'),
      `original_name` (of the starting point in its run), `positive` (a class, None where there are several questions),
      `averaging` (how their AUCs become one, else None), `cases`, `folds` [{fold, auc}], `mean_auc`, `sd_auc`,
      `pooled_auc`, `pooled_accuracy`, `selection`, `nested_mean_auc`, `published_mean_auc`, and `recipe`.
    """
    return [_row(run) for of_task in by_task(runs).values() for run in of_task]


def _row(run: Result) -> dict[str, Any]:
    selection, selections = run.facts["selection"], run.facts["selections"]
    task, starting_point, protocol, seed = run.key
    asked = questions(run.test, run.classes)
    return {
        **{"task": task, "starting_point": starting_point, "protocol": protocol},
        **({"seed": None, "kind": "baseline"} if run.is_baseline else {"seed": seed, "kind": "run"}),
        "original_name": run.facts["starting_point"],
        "positive": asked[0].name if len(asked) == 1 else None,
        "averaging": averaging_text(asked),
        "cases": len(run.test),
        "folds": [{"fold": entry["fold"], "auc": entry["auc"]} for entry in run.folds],
        **{name: selection[name] for name in _SPREAD},
        "selection": selection["protocol"],
        **{f"{name}_mean_auc": chosen and chosen["mean_auc"] for name, chosen in selections.items()},
        "recipe": run.facts["recipe"],
    }


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for `table.csv`: `fold_1`, `fold_2`, ... for `folds`, and `recipe.<key>` for `recipe`."""
    folds = {f"fold_{entry['fold']}": entry["auc"] for entry in row["folds"]}
    recipe = {f"recipe.{name}": value for name, value in row["recipe"].items()}
    return {key: value for key, value in row.items() if key not in ("folds", "recipe")} | folds | recipe


def compose(runs: Sequence[Result], pictures: Mapping[str, Sequence[Picture]]) -> list[Block]:
    """The report, from the main table on."""
    tasks, rows = by_task(runs), rows_of(runs)
    blocks: list[Block] = [Heading(1, "Starting points compared, fold by fold"), _main_table(rows)]
    blocks += [_positive(task, of_task[0]) for task, of_task in tasks.items()]
    blocks += [Heading(2, "AUC of every fold"), *_folds_tables(rows), Heading(2, "How to read it")]
    criteria = {run.facts["protocol"]: _CRITERIA[run.facts["selections"]["nested"]["criterion"]] for run in runs}
    named = ", ".join(f"{protocol}: {criterion}" for protocol, criterion in criteria.items())
    blocks += [READING, SELECTION, NESTED.format(criteria=named), PUBLISHED]
    for row in rows:
        if without := [str(entry["fold"]) for entry in row["folds"] if entry["auc"] is None]:
            name = f"{row['task']}, {row['starting_point']}, {row['protocol']}"
            blocks.append(f"{name}: fold {', '.join(without)} has no AUC, as its test cases lack a class.")
    blocks += [Heading(2, "How it was done"), _recipes([run for of_task in tasks.values() for run in of_task])]
    for task, of_task in tasks.items():
        blocks += [*_task(task, of_task), *pictures[task]]
    return blocks


def _main_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each run; what a reader looks for first stands first."""
    cells = []
    for row in rows:
        nested, published = row["nested_mean_auc"], row["published_mean_auc"]
        excess = "none" if nested is None or published is None else f"{published - nested:+.3f}"
        task, name, *others = _named(row)
        found = [number(value) for value in (row["pooled_auc"], row["pooled_accuracy"], nested, published)]
        cells.append([task, name, mean_and_sd_text(row), *found, excess, row["selection"], *others])
    header = ["mean ± SD", "pooled", "accuracy", "nested", "published", "published − nested", "selection"]
    return Table([*_KEY[:2], *header, *_KEY[2:]], cells)


def _folds_tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """The AUC of every fold, as many folds to a table as a page is wide."""
    folds = sorted({entry["fold"] for row in rows for entry in row["folds"]})
    aucs = [{entry["fold"]: number(entry["auc"]) for entry in row["folds"]} for row in rows]
    return [
        Table(
            [*_KEY, *(f"fold {fold}" for fold in part)],
            [[*_named(row), *(found.get(fold, "") for fold in part)] for row, found in zip(rows, aucs, strict=True)],
        )
        for part in (folds[first : first + _FOLDS_A_TABLE] for first in range(0, len(folds), _FOLDS_A_TABLE))
    ]


def _named(row: Mapping[str, Any]) -> list[str]:
    name = row["starting_point"] if row["kind"] == "run" else f"{row['starting_point']} (baseline)"
    return [row["task"], name, row["protocol"], _cell(row["seed"])]


def _recipes(runs: Sequence[Result]) -> Table:
    """A row for each run; its recipe is text that wraps, as its keys would be more columns than a page has room for."""
    rows = [
        [
            *map(str, run.key),
            ", ".join(setting["setting"] for setting in run.facts["settings"]),
            "; ".join(f"{name.replace('_', ' ')}: {_cell(value)}" for name, value in run.facts["recipe"].items()),
        ]
        for run in runs
    ]
    return Table([*_KEY, "settings", "recipe"], rows)


def _positive(task: str, run: Result) -> str:
    """Which class is the positive one, and how the AUCs of several become one."""
    asked = questions(run.test, run.classes)
    averaging = averaging_text(asked)
    return f"{task}: {positive_text(asked)}{f'; AUC: {averaging}' if averaging else ''}."


def _task(task: str, shown: Sequence[Result]) -> list[Block]:
    runs = [run for run in shown if not run.is_baseline]
    asked = questions(runs[0].test, runs[0].classes)
    folds = len(runs[0].folds)
    counts = f"{len(runs[0].test)} test cases over {folds} folds" if folds > 1 else f"{len(runs[0].test)} test cases"
    if len(asked) == 1:
        positive = int(asked[0].labels.sum())
        counts += f": {len(asked[0].labels) - positive} {asked[0].rest}, {positive} {asked[0].name} (positive)"
    blocks: list[Block] = [Heading(2, task), f"{counts}."]
    if len(asked) > 1:
        blocks += _questions_tables(shown)
    blocks += [
        *_by_unit(shown),
        *_data(runs[0]),
        *_undefined(runs[0]),
        *_differing_recipes(runs),
        *_differing_baselines(runs),
    ]
    facts = dict.fromkeys(name for run in runs for entry in run.folds for name in entry if name not in COMPUTED)
    header = [*_KEY[1:], "fold", "setting", *(name.replace("_", " ") for name in facts), "threshold", "AUC"]
    rows = [
        [
            *map(str, (*run.key[1:], entry["fold"], entry["setting"])),
            *(_cell(entry.get(name)) for name in facts),
            *(number(entry[name]) for name in ("threshold", "auc")),
        ]
        for run in runs
        for entry in run.folds
    ]
    note = "The selected settings. Thresholds are those with the largest Youden's J on the validation part."
    return [*blocks, Table(header, rows), note]


def _by_unit(runs: Sequence[Result]) -> list[Block]:
    """AUCs of volumes and patients, whose scores are the mean or the highest of their images'."""
    rows = []
    for run in runs:
        for unit, by in run.facts["selection"].get("units", {}).items():
            pooled = pool(run.test, unit, "mean", run.classes)
            asked = questions(pooled, run.classes)
            positive = str(int(asked[0].labels.sum())) if len(asked) == 1 else ""
            rows += [
                [
                    *(*_named(_row(run)), unit, how, str(len(pooled)), positive),
                    *(mean_and_sd_text(summary), number(summary["pooled_auc"])),
                ]
                for how, summary in by.items()
            ]
    if not rows:
        return []
    return [Table([*_KEY, "scored", "by", "units", "positive", "mean ± SD", "pooled"], rows), UNITS_NOTE]


def _data(run: Result) -> list[Block]:
    """How the data of a task was read, as its first run says."""
    found = [(name, run.facts["data"].get(name)) for name in _SHOWN_FACTS]
    rows = [[name, text if isinstance(text, str) else "; ".join(text)] for name, text in found if text]
    return [Table(["data", f"as {run.directory.name} read it"], rows)] if rows else []


def _questions_tables(runs: Sequence[Result]) -> list[Table]:
    """A row for each label, or for each class against the rest: its cases, and the AUC of every run, some a table."""
    asked, names = questions(runs[0].test, runs[0].classes), run_names(runs)
    tables = []
    for first in range(0, len(runs), _RUNS_A_TABLE):
        part = slice(first, first + _RUNS_A_TABLE)
        rows = [
            [
                *(question.name, str(len(question.labels)), str(int(question.labels.sum()))),
                *(mean_and_sd_text(run.facts["selection"]["label_auc"][question.name]) for run in runs[part]),
            ]
            for question in asked
        ]
        tables.append(Table(["label", "known", "positive", *names[part]], rows))
    return tables


def _undefined(run: Result) -> list[str]:
    """A sentence for each fold where a label, or a class against the rest, has no AUC: the same in all runs."""
    return [
        f"Fold {entry['fold']} has no AUC of {', '.join(absent)}: "
        "its test cases lack known positive or known negative ones."
        for entry in run.folds
        if (absent := [name for name, auc in entry.get("label_auc", {}).items() if auc is None])
    ]


def _differing_recipes(runs: Sequence[Result]) -> list[str]:
    """A sentence for each protocol whose runs differ in more than their starting point."""
    sentences = []
    for protocol in dict.fromkeys(run.facts["protocol"] for run in runs):
        recipes = [run.facts["recipe"] for run in runs if run.facts["protocol"] == protocol]
        keys = dict.fromkeys(name for recipe in recipes for name in recipe if name not in _OF_STARTING_POINT)
        if names := [key for key in keys if any(recipe.get(key) != recipes[0].get(key) for recipe in recipes)]:
            what = ", ".join(name.replace("_", " ") for name in names)
            sentences.append(f"The runs of protocol {protocol} differ in more than their starting point: {what}.")
    return sentences


def _differing_baselines(runs: Sequence[Result]) -> list[str]:
    """A sentence if the runs' pixel baselines, which should be one, are not."""
    found = baselines(runs)
    aucs = [number(run.facts["selection"]["pooled_auc"], 6) for run in found]
    for run, auc in zip(found, aucs, strict=True):
        if auc != aucs[0]:
            return [
                f"The pixel baselines of these runs differ: pooled AUC {aucs[0]} in {found[0].directory}, which is "
                f"shown, and {auc} in {run.directory}."
            ]
    return []


def _cell(value: Any) -> str:
    """A fact as text; what a run does not have is an empty cell."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
