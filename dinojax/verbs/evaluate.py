"""`dinojax evaluate PROTOCOL`: scores a model's frozen features on every fold, without training it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dinojax.config import parser
from dinojax.config.evaluate import FrozenConfig, KNNConfig
from dinojax.data.duplicates import write_dropped
from dinojax.data.facts import render
from dinojax.data.headers import list_skipped
from dinojax.data.records import Fold
from dinojax.models.preprocessing import keep_intensity
from dinojax.protocols import assembly, knn, pixels, recipes
from dinojax.protocols.starting_point import with_model_of_init
from dinojax.protocols.study import Score, Study, is_finished, summarise
from dinojax.runs.directory import check_config, lock, write_config

# Changing any other key would mix the units of two configurations.
CHANGEABLE = ("data", "data_root")


class FrozenProtocol(NamedTuple):
    """How a protocol on frozen features is made of its configuration."""

    name: str
    settings: Callable[[Any, Sequence[Fold]], Sequence[Any]]
    recipe: Callable[[Any], dict[str, Any]]
    """How it is done, for the report."""
    score: Callable[[Any, Study, np.ndarray], Score]
    """Takes the features of all cases, float32 [N, D]."""


PROTOCOLS: dict[type[FrozenConfig], FrozenProtocol] = {
    KNNConfig: FrozenProtocol(
        "knn",
        settings=lambda config, folds: knn.make_settings(config.ks, folds),
        recipe=lambda config: {
            "votes": "equal" if config.temperature is None else f"exp(similarity / {config.temperature:g})"
        },
        score=lambda config, study, features: knn.protocol(features, study.labels, study.task, config.temperature),
    ),
}


def main(config: FrozenConfig) -> Path:
    """Runs a protocol on frozen features; the same command resumes."""
    out, protocol = Path(config.out), PROTOCOLS[type(config)]
    config = with_model_of_init(config)
    check_config(config, out, parser.names(config.accept_changes), CHANGEABLE)
    if is_finished(out):
        return out
    backbone = assembly.make_backbone(config)
    cases = assembly.read_cases(config, backbone.preprocessing.intensity)
    keep_intensity(backbone, cases.headers.rules)
    settings = protocol.settings(config, cases.folds)
    facts, here = recipes.frozen_facts(config, cases, backbone)
    print(render(facts | here), flush=True)
    if config.check:
        return out
    with lock(out):
        extracted = assembly.extract_cases(config, backbone, cases)
        cases = assembly.without_skipped(config, cases, extracted.records)
        recipe = recipes.common_recipe(config, backbone) | {"features": config.features} | protocol.recipe(config)
        study = assembly.make_study(config, protocol.name, cases, settings, "val_auc", recipe, facts)
        study.begin()
        write_config(config, out)
        write_dropped(cases.dropped, out)
        list_skipped(extracted.skipped, out / "skipped_files.csv")
        pixels.run_pixels(study, extracted.views["pixels"])
        results = study.run(protocol.score(config, study, extracted.views[config.features]))
    print(f"done: {summarise(results)}; look at {out / 'results.json'} and {out / 'figures'}")
    return out
