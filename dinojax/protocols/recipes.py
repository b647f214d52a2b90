"""What a study says of itself: facts before it begins, and its recipe for the report."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from dinojax import costs, tree
from dinojax.config.finetune import FinetuneConfig
from dinojax.config.study import StudyConfig
from dinojax.data.duplicates import LIMIT
from dinojax.data.facts import Facts, data_facts
from dinojax.data.splits import describe_folds
from dinojax.models import Backbone
from dinojax.models.description import describe_model, model_name
from dinojax.models.heads import Classifier
from dinojax.models.provenance import PRETRAINING, TRAINING, read_corpus
from dinojax.models.store import classifier_origin
from dinojax.protocols.assembly import Cases
from dinojax.wording import counted


def finetuning_recipe(
    config: FinetuneConfig, classifier: Classifier, rates: Mapping[str, float]
) -> dict[str, int | float | str]:
    """How a fine-tuning run is done, for its results."""
    params, head = tree.split(classifier)[1], config.classifier
    twice = classifier.renormalise and ", norm applied twice"
    augment = dataclasses.asdict(config.augment).items()
    return {
        **common_recipe(config, classifier.backbone),
        "mode": config.mode,
        "trained_parameters": sum(params[path].size for path in rates),
        "head": (f"hidden {head.hidden}" if head.hidden else "linear") + (twice or ""),
        "epochs": config.epochs,
        "weights_kept": config.epoch_selection,
        "weight_decay": config.weight_decay,
        "augment": ", ".join(f"{name} {_text(value)}" for name, value in augment),
    }


def frozen_facts(config: StudyConfig, cases: Cases, backbone: Backbone) -> tuple[Facts, Facts]:
    """What a protocol on frozen features will do: facts that hold anywhere, and those of this machine."""
    memory = 4 * 2 * backbone.width * len(cases.records)
    return _case_facts(config, cases, backbone), _work_facts(len(cases.records) * _forward_flops(backbone), memory)


def _work_facts(operations: float, memory: float) -> Facts:
    """What the machine is, and how long and with how much memory a study will keep it busy.

    Args:
      operations: floating-point operations of the models; decoding and the baseline come on top.
      memory: bytes of the images or features that are kept.
    """
    kept = f"{memory / 2**30:.2g} GiB for all images at once, and what the model needs"
    return {"machine": costs.machine(), "memory": kept, "time": costs.duration(operations)}


def _forward_flops(backbone: Backbone) -> float:
    """Floating-point operations of one image's way through a backbone."""
    size = backbone.preprocessing.size
    graph, params = tree.split(backbone.for_inference())
    image = jax.ShapeDtypeStruct((1, size, size, backbone.channels), np.float32)
    return costs.flops(lambda params, x: tree.merge(graph, params)(x).pooled, params, image)


def finetuning_facts(
    config: FinetuneConfig, cases: Cases, classifier: Classifier, rates: Mapping[str, float]
) -> tuple[Facts, Facts]:
    """What a fine-tuning run will do: facts that hold anywhere, and those of this machine."""
    sizes = {path: array.size for path, array in tree.weights(classifier).items()}
    trained = f"{config.mode}: {sum(sizes[path] for path in rates):,} of {sum(sizes.values()):,} parameters"
    settings = len(config.lrs) * len(config.batch_sizes)
    # A step back costs twice a step forth; frozen, it ends at the head.
    factor = 3 if config.mode == "full" else 1
    images = sum(config.epochs * (factor * len(fold.train) + len(fold.val)) + len(fold.test) for fold in cases.folds)
    backbone = classifier.backbone
    channels = min(backbone.channels, cases.headers.channels)
    memory = len(cases.records) * backbone.preprocessing.size**2 * channels
    folds = len(cases.folds)
    units = f"{counted(folds * settings, 'training')}: {counted(folds, 'fold')} × {counted(settings, 'setting')}"
    units += f", {counted(config.epochs, 'epoch')} each"
    return (
        _case_facts(config, cases, backbone) | {"trained": trained, "work": units},
        _work_facts(settings * images * _forward_flops(backbone), memory),
    )


def _case_facts(config: StudyConfig, cases: Cases, backbone: Backbone) -> Facts:
    first = None if cases.twins is None else cases.twins.first
    how = describe_folds(cases.records, config.folds, config.fold_seed, first)
    known = data_facts(cases.records, cases.headers, cases.folds, how, cases.twins)
    corpus = {"corpus": _corpus_fact(config.init, cases)} if config.init is not None else {}
    return known | {"model": _model_fact(config, backbone)} | corpus


def _corpus_fact(init: str, cases: Cases) -> str | list[str]:
    """How many of the test images the model of `init` has been trained on."""
    known = read_corpus(init)
    if not known:
        return f"{init} does not say which images it was trained on"
    if cases.twins is None:
        return f"not compared with more than {LIMIT:,} images"
    tested = np.unique(np.concatenate([fold.test for fold in cases.folds]))
    hashes, lines = cases.twins.pixels[tested], []
    where = {PRETRAINING: ("pre-training corpus", "transductive"), TRAINING: ("training images", "a leak")}
    for name, (what, means) in where.items():
        if name in known:
            seen = int((np.isin(hashes, known[name]) & (hashes != 0)).sum())
            verb = "was" if seen == 1 else "were"
            end = f" ({means})" if seen else ""
            lines.append(f"{seen} of {len(tested)} test images {verb} in the {what} of {init}{end}")
    return lines if len(lines) > 1 else lines[0]


def _model_fact(config: StudyConfig, backbone: Backbone) -> str:
    described = describe_model(backbone, config.init or "random weights", backbone.preprocessing.size)
    return f"{described}, normalisation {config.normalisation}"


def common_recipe(config: StudyConfig, backbone: Backbone) -> dict[str, int | float | str]:
    """What any protocol's recipe says of the model."""
    origin = classifier_origin(config.init) if config.init else None
    return {
        "init": (config.init or "random weights") + (f" (the backbone of {origin})" if origin else ""),
        "model": model_name(backbone),
        "image_size": backbone.preprocessing.size,
        "normalisation": config.normalisation,
    }


def _text(value: Any) -> str:
    return "–".join(map(_text, value)) if isinstance(value, tuple) else f"{value}"
