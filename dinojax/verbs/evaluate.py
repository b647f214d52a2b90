"""`dinojax evaluate knn`: scores a model's frozen features on every fold, without training it."""

from pathlib import Path

from dinojax.config import parser
from dinojax.config.evaluate import KNNConfig
from dinojax.data.decode import list_skipped
from dinojax.protocols import assembly, knn
from dinojax.protocols.study import is_finished, summarise
from dinojax.runs.directory import check_config, lock, write_config

# Changing any other key would mix the units of two configurations.
CHANGEABLE = ("data", "data_root")


def main(config: KNNConfig) -> Path:
    """k nearest neighbours on frozen features; the same command resumes."""
    out, settings = Path(config.out), knn.make_settings(config.ks)
    check_config(config, out, parser.names(config.accept_changes), CHANGEABLE)
    if is_finished(out):
        return out
    backbone = assembly.make_backbone(config)
    cases = assembly.extract_cases(config, backbone)
    recipe = assembly.knn_recipe(config, backbone)
    study = assembly.make_study(config, "knn", cases.records, settings, "val_auc", recipe)
    knn.check(study)
    with lock(out):
        study.begin()
        write_config(config, out)
        list_skipped(cases.skipped, out / "skipped_files.csv")
        assembly.run_pixels(study, cases.views["pixels"])
        results = study.run(knn.protocol(cases.views[config.features], study.labels, study.task, config.temperature))
    print(f"done: {summarise(results)}; look at {out / 'results.json'} and {out / 'figures'}")
    return out
