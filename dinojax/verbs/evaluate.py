"""`python -m dinojax evaluate knn`: scores a model's frozen features on every fold, without training it."""

from pathlib import Path

from dinojax.config import parser
from dinojax.config.evaluate import KNNConfig
from dinojax.data.decode import list_skipped
from dinojax.errors import UsageError
from dinojax.protocols import assembly, knn
from dinojax.protocols.study import is_finished, summarise
from dinojax.runs.directory import check_config, lock, write_config

# Changing any other key would mix the units of two configurations.
CHANGEABLE = ("data", "data_root")


def main(arguments: list[str]) -> None:
    """Runs the protocol that the command line names first."""
    if arguments[:1] == ["knn"]:
        return evaluate_knn(arguments[1:])
    if arguments[:1] in (["-h"], ["--help"]):
        return print("usage: python -m dinojax evaluate knn ... (knn --help lists its keys)")
    raise UsageError(f"evaluate takes a protocol first, knn, not {' '.join(arguments[:1]) or 'nothing'}")


def evaluate_knn(arguments: list[str]) -> None:
    """k nearest neighbours on frozen features; the same command resumes."""
    config = parser.parse(KNNConfig, arguments, "evaluate knn")
    out, settings = Path(config.out), knn.make_settings(config.ks)
    check_config(config, out, parser.names(config.accept_changes), CHANGEABLE)
    if is_finished(out):
        return
    backbone = assembly.make_backbone(config)
    cases = assembly.extract_cases(config, backbone)
    recipe = assembly.knn_recipe(config, backbone)
    study = assembly.make_study(config, "knn", cases.records, settings, "val_auc", recipe)
    knn.check(study)
    with lock(out):
        study.begin()
        write_config(config, out)
        list_skipped(cases.skipped, out / "skipped_files.csv")
        assembly.run_pixels(study, cases.features.columns["pixels"])
        features = getattr(cases.features, {"class_token": "pooled", "mean_patch": "mean_patch"}[config.features])
        results = study.run(knn.protocol(features, study.labels, study.task, config.temperature))
    print(f"done: {summarise(results)}; look at {out / 'results.json'} and {out / 'figures'}")
