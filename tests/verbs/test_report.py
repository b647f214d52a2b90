"""The report against the runs' predictions, and what it refuses."""

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from sklearn.metrics import roc_auc_score

import dinojax
from dinojax.errors import RunError, UsageError
from dinojax.verbs import run as run_verb
from tests.tasks import FINETUNE, finished_run, write_multilabel_task, write_task


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_task(tmp_path_factory.mktemp("data") / "breast", per_class=12)


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("runs")
    three = write_task(folder / "brain", ("a", "b", "c"), per_class=12)
    return [
        finished_run(folder / "one", data),
        finished_run(folder / "two", data, "pre-trained", seed=1, selection="published"),
        finished_run(folder / "three", three, "pre-trained", task="brain|T2"),
        finished_run(folder / "four", data, "pre-trained", protocol="knn"),
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All text of the figures that are saved from here on."""
    texts: list[str] = []
    save = Figure.savefig

    def record(figure: Figure, *arguments: Any, **options: Any) -> None:
        texts.extend(text.get_text() for text in figure.findobj(Text) if isinstance(text, Text))
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", record)
    return texts


def auc(rows: list[dict[str, Any]], classes: list[str]) -> float:
    """By scikit-learn; with several classes each against the rest."""
    positive = classes[1:] if len(classes) == 2 else classes
    each = [
        roc_auc_score([row["label"] == name for row in rows], [row[f"score_{name}"] for row in rows])
        for name in positive
    ]
    return float(np.mean(each))


def make(runs: list[Path], out: Path) -> Path:
    run_verb(["report", *map(str, runs), "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def out(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(runs, tmp_path_factory.mktemp("report") / "out")


def test_the_table_is_what_the_predictions_give(runs: list[Path], out: Path) -> None:
    table = pd.read_csv(out / "table.csv").set_index(["task", "starting_point", "protocol"])
    stated = json.loads((out / "report.json").read_text())["table"]
    assert len(table) == len(stated) == 6  # four runs, and a baseline per task
    for run in runs:
        results = json.loads((run / "results.json").read_text())
        chosen = {entry["fold"]: entry["setting"] for entry in results["selection"]["folds"]}
        rows: list[dict[str, Any]] = pd.read_csv(run / "predictions.csv").to_dict("records")  # type: ignore[assignment]
        rows = [row for row in rows if row["split"] == "test" and row["setting"] == chosen[row["fold"]]]
        aucs = [auc([row for row in rows if row["fold"] == fold], results["classes"]) for fold in (1, 2, 3)]
        pooled = auc(rows, results["classes"])
        line = table.loc[(results["task"], results["starting_point"], results["protocol"])]
        np.testing.assert_allclose([line[f"fold_{fold}"] for fold in (1, 2, 3)], aucs, atol=1e-12)
        np.testing.assert_allclose(line[["mean_auc", "sd_auc"]].astype(float), [np.mean(aucs), np.std(aucs, ddof=1)])
        assert line["pooled_auc"] == pytest.approx(pooled, abs=1e-12)
        nested, published = (results["selections"][name]["mean_auc"] for name in ("nested", "published"))
        assert (line["nested_mean_auc"], line["published_mean_auc"]) == pytest.approx((nested, published))
        name = results["task"].replace("|", "\\|")
        text = f"| {name} | {results['starting_point']} | {np.mean(aucs):.3f} ± {np.std(aucs, ddof=1):.3f} | "
        classes = results["classes"]
        right = np.mean([max(classes, key=lambda name: row[f"score_{name}"]) == row["label"] for row in rows])
        text += f"{pooled:.3f} | {right:.3f} | {nested:.3f} | {published:.3f} | {published - nested:+.3f} |"
        assert text in (out / "report.md").read_text()
    assert table.loc[("breast", "pixels", "pixels"), "kind"] == "baseline"
    assert table["recipe.epochs"].tolist()[:2] == [2, 2]
    assert table["recipe.votes"].dropna().tolist() == ["softmax"]


def test_the_text_says_how_to_read_it(out: Path) -> None:
    text = (out / "report.md").read_text()
    for words in ("not a confidence interval", "optimistic", "no test case has a part", "pixels (baseline)"):
        assert words in text
    assert "lowest validation loss" in text
    assert "highest validation AUC" in text
    assert "differ in more" not in text  # the protocols' recipes do, the starting points' within one do not
    assert "| brain\\|T2 |" in text  # a name breaks no table
    for link in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (out / link).stat().st_size
    assert len(list((out / "figures").iterdir())) == 5


def test_the_positive_class_is_named(out: Path) -> None:
    binary = "breast: positive: malignant."
    several = "brain|T2: one-vs-rest, each class positive in turn; AUC: unweighted (macro) mean of the 3 classes' AUCs"
    for text in ((out / "report.md").read_text(), html.unescape((out / "report.html").read_text())):
        assert binary in text
        assert several in text
    rows = {row["task"]: row for row in json.loads((out / "report.json").read_text())["table"]}
    assert (rows["breast"]["positive"], rows["breast"]["averaging"]) == ("malignant", None)
    assert rows["brain|T2"]["positive"] is None
    assert rows["brain|T2"]["averaging"].startswith("unweighted (macro) mean of the 3 classes' AUCs")
    table = pd.read_csv(out / "table.csv").set_index("task")
    assert set(table.loc["breast", "positive"]) == {"malignant"}


def test_the_report_says_how_the_data_was_read(runs: list[Path], out: Path) -> None:
    text = (out / "report.md").read_text()
    assert "| data | as one read it |" in text
    assert "| patients | 24, from column patient_id |" in text
    assert "| duplicates | 1 file equals another one byte for byte; fold 1: 1 across its parts, a leak |" in text


def test_the_mean_stands_where_a_narrow_page_shows_it(out: Path) -> None:
    first = re.search(r"<thead><tr>(.*?)</tr>", (out / "report.html").read_text())
    assert first is not None
    columns = re.findall(r"<th>(.*?)</th>", first[1])
    assert columns[:4] == ["task", "starting point", "mean ± SD", "pooled"]
    assert not any("fold" in name for name in columns)


def test_no_table_has_more_columns_than_a_page_has_room_for(data: Path, tmp_path: Path) -> None:
    recipe = {f"key {number}": "some words" for number in range(40)}
    run = finished_run(tmp_path / "run", data, recipe=recipe)
    page = (make([run], tmp_path / "report") / "report.html").read_text()
    headers = re.findall(r"<thead><tr>(.*?)</tr>", page)
    assert max(header.count("<th>") for header in headers) <= 12
    assert all(f"{name}: some words" in page for name in recipe)
    # Only numbers stay on one line.
    assert re.search(r'<td class="number">0\.\d{3} ± 0\.\d{3}</td>', page)
    assert "nowrap" not in re.sub(r"\.number \{[^}]*\}", "", page)
    assert "@media print" in page


def test_the_page_needs_no_other_file(out: Path) -> None:
    page = (out / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]{5})', page)
    assert sources == ["data:"] * 5
    assert "<td>brain|T2</td>" in page


def test_runs_of_one_protocol_that_differ_in_their_recipe_are_named(data: Path, tmp_path: Path) -> None:
    runs = [
        finished_run(tmp_path / "one", data),
        finished_run(
            tmp_path / "two",
            data,
            "other",
            recipe={**FINETUNE, "epochs": 3, "model": "resnet50", "init": "weights/resnet50"},
        ),
    ]
    text = (make(runs, tmp_path / "report") / "report.md").read_text()
    assert "The runs of protocol finetune differ in more than their starting point: epochs." in text


def test_a_multilabel_task_has_a_row_for_each_label(tmp_path: Path) -> None:
    data = write_multilabel_task(tmp_path / "chest")
    runs = [
        finished_run(tmp_path / "one", data, task="chest"),
        finished_run(tmp_path / "two", data, "other", task="chest", protocol="knn"),
    ]
    out = make(runs, tmp_path / "report")
    text, manifest = (out / "report.md").read_text(), pd.read_csv(data / "manifest.csv")
    assert "| label | known | positive | random, finetune | other, knn | pixels (baseline) |" in text
    stated = [json.loads((run / "results.json").read_text())["selection"]["label_auc"] for run in runs]
    for name in ("edema", "effusion", "nodule", "rare"):
        known = manifest[f"label_{name}"].dropna().tolist()
        spread = r"\(one fold\)" if name == "rare" else "± "
        cells = [f"{auc[name]['mean_auc']:.3f} {spread}" for auc in stated]
        assert re.search(rf"\| {name} \| {len(known)} \| {int(sum(known))} \| {cells[0]}.* \| {cells[1]}.* \|", text)
    assert re.search(r"Fold \d has no AUC of rare: its test cases lack known positive or known negative ones\.", text)
    assert "losses_chest_random_finetune_0.png" in text
    assert "losses_chest_other" not in text  # k-NN has no epochs


def test_one_fold_has_no_spread(data: Path, tmp_path: Path) -> None:
    out = make([finished_run(tmp_path / "one", data, folds=1)], tmp_path / "report")
    stated = json.loads((out / "report.json").read_text())["table"][0]
    assert stated["sd_auc"] is None
    for name in ("report.md", "report.html"):
        text = (out / name).read_text()
        assert f"{stated['mean_auc']:.3f} (one fold)" in text
        assert "± none" not in text


@pytest.mark.parametrize("listed", ["DINOv2 ViT-S,1e-3: 乳腺", '["DINOv2 ViT-S", "1e-3: 乳腺"]'])
def test_starting_points_are_renamed_in_tables_and_figures(
    data: Path, tmp_path: Path, drawn: list[str], listed: str
) -> None:
    runs = [finished_run(tmp_path / "one", data), finished_run(tmp_path / "two", data, "pre-trained")]
    run_verb(["report", *map(str, runs), "--out", str(tmp_path / "report"), "--names", listed])
    names = ["DINOv2 ViT-S", "1e-3: 乳腺"]
    table = json.loads((tmp_path / "report" / "report.json").read_text())["table"]
    assert [row["starting_point"] for row in table[:2]] == names
    assert [row["original_name"] for row in table[:2]] == ["random", "pre-trained"]
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text()
        assert all(new in text for new in names)
        assert "pre-trained" not in text
    assert any("DINOv2 ViT-S" in text for text in drawn)
    assert not any("pre-trained" in text for text in drawn)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["A", "A"], r"one and .*two are both of task 'breast', starting point 'A', .*name one otherwise \(--names\)"),
        (["A"], r"names has 1 \(A\) for 2 runs"),
        (["A", "B, C", "D"], r"names has 3 \(A, B, C, D\) for 2 runs"),
        (["A", " "], "names holds an empty one"),
    ],
)
def test_names_that_do_not_fit_are_refused(data: Path, tmp_path: Path, names: list[str], message: str) -> None:
    runs = [finished_run(tmp_path / "one", data), finished_run(tmp_path / "two", data, "pre-trained")]
    with pytest.raises(UsageError, match=message) as raised:
        dinojax.report(runs, out=tmp_path / "report", names=names)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "report").exists()


def test_two_runs_of_one_name_can_be_told_apart(data: Path, tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / "one", data), finished_run(tmp_path / "two", data)]
    dinojax.report(runs, out=tmp_path / "report", names=["before", "after"])
    table = json.loads((tmp_path / "report" / "report.json").read_text())["table"]
    assert [row["starting_point"] for row in table[:2]] == ["before", "after"]


@pytest.mark.filterwarnings("error::UserWarning")
def test_ugly_names_and_many_starting_points_make_a_page(tmp_path: Path) -> None:
    labels = ("a label of many words and_underscores", "Ödem", "w" * 80, "$x$", "乳腺", "rare")
    data = write_multilabel_task(tmp_path / "data", labels, cases=60)
    names = [f"{'a checkpoint of all the images there are, ' * 2}{n}" for n in range(5)]
    names += ["Грудь: $x^2$ & <b>", "_hidden", "乳腺"]
    runs = [
        finished_run(tmp_path / str(place), data, name, task="胸部" * 40, protocol="knn", folds=1)
        for place, name in enumerate(names)
    ]
    out = make(runs, tmp_path / "report")
    page, text = html.unescape((out / "report.html").read_text()), (out / "report.md").read_text()
    assert all(name in page and name in text for name in names)
    headers = re.findall(r"<thead><tr>(.*?)</tr>", page)
    assert max(header.count("<th>") for header in headers) <= 12
    assert "nan" not in text
    assert "none ±" not in text
    assert len(list((out / "figures").iterdir())) == 3  # two panels each


def test_names_that_differ_in_punctuation_alone_have_figures_of_their_own(data: Path, tmp_path: Path) -> None:
    names = ("a b", "a/b", "A|B", "a_b_2")
    runs = [finished_run(tmp_path / str(place), data, name, task="t") for place, name in enumerate(names)]
    out = make(runs, tmp_path / "report")
    files = {path.name.lower() for path in (out / "figures").iterdir()}
    assert len(files) == 5
    links = re.findall(r"\]\((figures/[^)]+)\)", (out / "report.md").read_text())
    assert len(set(links)) == 5


def test_baselines_that_differ_are_named(data: Path, tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / "one", data), finished_run(tmp_path / "two", data, "other")]
    text = (make(runs, tmp_path / "report") / "report.md").read_text()
    assert "baselines of these runs differ" not in text
    shutil.rmtree(runs[1] / "pixels")
    other = finished_run(tmp_path / "three", data, "pixels", protocol="knn")
    for path in other.iterdir():
        if path.name != "pixels":
            change(path, "knn", "pixels")
    shutil.copytree(other, runs[1] / "pixels", ignore=shutil.ignore_patterns("pixels"))
    text = (make(runs, tmp_path / "again") / "report.md").read_text()
    assert re.search(
        r"The pixel baselines of these runs differ: pooled AUC 0\.\d+ in .*one/pixels, which is shown", text
    )
    shutil.rmtree(runs[0] / "pixels")
    shutil.rmtree(runs[1] / "pixels")
    assert "(baseline)" not in (make(runs, tmp_path / "none") / "report.md").read_text()


def change(path: Path, before: str, after: str) -> None:
    path.write_text(path.read_text().replace(before, after))


def refuse(runs: list[Path], tmp_path: Path, error: type[RunError], message: str) -> None:
    with pytest.raises(error, match=message):
        make(runs, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_changed_predictions_are_refused(data: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", data)
    table = pd.read_csv(run / "predictions.csv")
    table["score_malignant"] = 1 - table["score_malignant"]
    table.to_csv(run / "predictions.csv", index=False)
    refuse([run], tmp_path, RunError, r"run: results\.json states .* but the predictions give")


@pytest.mark.parametrize(
    ("folder", "where"),
    [
        ("", ("selection", "pooled_auc")),
        ("", ("selection", "folds", 1, "threshold")),
        ("", ("selections", "nested", "sd_auc")),
        ("", ("selections", "published", "folds", 2, "auc")),
        ("", ("settings", 1, "folds", 0, "auc")),
        ("pixels", ("selection", "mean_auc")),
    ],
)
def test_changed_results_are_refused(data: Path, tmp_path: Path, folder: str, where: tuple[Any, ...]) -> None:
    run = finished_run(tmp_path / "run", data)
    results = json.loads((run / folder / "results.json").read_text())
    part = results
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] += 0.001
    (run / folder / "results.json").write_text(json.dumps(results))
    refuse([run], tmp_path, RunError, f"{folder}: results.json states .* for .*{where[-1]}, but the predictions give")


def test_a_changed_selection_is_refused(data: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", data)
    results = json.loads((run / "results.json").read_text())
    for setting in results["settings"]:
        setting["folds"][0]["val_loss"] *= -1  # the other setting has the lower one now
    (run / "results.json").write_text(json.dumps(results))
    refuse([run], tmp_path, RunError, r"selections\.nested\.\w+")


def test_a_baseline_of_other_cases_is_refused(data: Path, tmp_path: Path) -> None:
    run, other = finished_run(tmp_path / "run", data), finished_run(tmp_path / "other", data, folds_seed=5)
    shutil.rmtree(run / "pixels")
    shutil.copytree(other / "pixels", run / "pixels")
    refuse([run], tmp_path, RunError, "do not test the same cases in the same folds")


@pytest.mark.parametrize(
    ("key", "message"), [("recipe", "'recipe'"), ("data", "'data'"), ("selections", "'selections'")]
)
def test_results_of_another_version_are_refused(data: Path, tmp_path: Path, key: str, message: str) -> None:
    run = finished_run(tmp_path / "run", data)
    results = json.loads((run / "results.json").read_text())
    (run / "results.json").write_text(json.dumps({name: value for name, value in results.items() if name != key}))
    refuse([run], tmp_path, RunError, rf"results\.json: is not of this version \(.*{message}")


def test_an_output_that_is_a_file_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--out .*file is a file"):
        make([tmp_path / "nowhere"], tmp_path / "file")


def test_runs_of_other_folds_or_cases_are_refused(runs: list[Path], data: Path, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", data, "another", folds_seed=5)
    refuse(
        [runs[0], other], tmp_path, UsageError, "one and .*other are of one task, 'breast', but not of the same folds"
    )


def test_runs_of_other_classes_are_refused(runs: list[Path], tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", write_task(tmp_path / "data", ("no", "yes")), "another")
    refuse([runs[0], other], tmp_path, UsageError, "classes differ: benign, malignant and no, yes")


def test_two_runs_of_one_name_are_refused(runs: list[Path], data: Path, tmp_path: Path) -> None:
    other = finished_run(tmp_path / "other", data)
    refuse(
        [runs[0], other],
        tmp_path,
        UsageError,
        "are both of task 'breast', starting point 'random', protocol 'finetune', seed 0",
    )


def test_unfinished_and_foreign_folders_are_refused(runs: list[Path], data: Path, tmp_path: Path) -> None:
    run = finished_run(tmp_path / "run", data)
    (run / "results.json").unlink()
    refuse([runs[0], run], tmp_path, UsageError, "run is unfinished")
    refuse([tmp_path / "nowhere"], tmp_path, UsageError, "nowhere is not a run of a protocol")
