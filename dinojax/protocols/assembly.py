"""The parts that a study is put together from, each made from what the user set."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from dinojax import progress, sharding, tree
from dinojax.augment import geometry
from dinojax.config.evaluate import KNNConfig
from dinojax.config.finetune import FinetuneConfig
from dinojax.config.study import StudyConfig
from dinojax.data import pipeline
from dinojax.data.decode import check_headers
from dinojax.data.memory import Decoded, decode_all
from dinojax.data.reading import read_records
from dinojax.data.records import Records
from dinojax.data.sources import ImageSource
from dinojax.data.splits import make_folds
from dinojax.errors import UsageError
from dinojax.models import ARGUMENTS, Backbone, Preprocessing, create_model
from dinojax.models.heads import Classifier
from dinojax.models.resnet import freeze_batchnorm
from dinojax.models.store import load_model, write_model
from dinojax.optim import WEIGHT_DECAY, multipliers
from dinojax.protocols import pixels
from dinojax.protocols.features import Extracted, extract
from dinojax.protocols.finetuning import RATES, Finetuning, make_steps
from dinojax.protocols.study import Study, Unit, name_of
from dinojax.protocols.task import Task
from dinojax.reporting.selection import Criterion
from dinojax.seeds import derive
from dinojax.tree import Params

_BATCH = 64  # images whose features a device computes at a time


def make_backbone(config: StudyConfig) -> Backbone:
    """The model of `init`, or one with random weights, with the preprocessing that this study uses.

    Raises:
      UsageError: there is no such model, or it does not read images of this size.
    """
    if config.init is not None:
        backbone = load_model(config.init)
    else:
        given = {name: value for name, value in dataclasses.asdict(config.model).items() if value is not None}
        # The very weights that pre-training with this seed would begin from.
        backbone = create_model(rngs=nnx.Rngs(derive(config.seed, "backbone")), **given)
    size = config.image_size or backbone.preprocessing.size
    try:
        backbone.check_size(size, size)
    except ValueError as error:
        raise UsageError(f"image_size {size}: {error}") from error
    used = dataclasses.replace(backbone.preprocessing, size=size)
    if config.normalisation == "none":
        used = Preprocessing(size, (0.0,) * backbone.channels, (1.0,) * backbone.channels)
    backbone.preprocessing = used
    return backbone


def decode_cases(config: StudyConfig, backbone: Backbone) -> Decoded:
    """All images in memory: squares for the model (`image`), and small grey ones for the baseline (`pixels`)."""
    return decode_all(
        _read(config),
        {"image": partial(geometry.square, size=backbone.preprocessing.size), "pixels": pixels.grey_pixels},
        channels=backbone.channels,
        threads=config.threads,
        on_bad_file=config.on_bad_file,
    )


class ExtractedCases(NamedTuple):
    """Features of all images that could be read; the images themselves are not kept."""

    records: Records
    features: Extracted
    """Its columns have `pixels`, the small grey images of the baseline."""
    skipped: list[tuple[str, str]]


def extract_cases(config: StudyConfig, backbone: Backbone) -> ExtractedCases:
    """Runs a frozen backbone over all images."""
    records, headers = check_headers(_read(config), on_bad_file=config.on_bad_file)
    print(headers.summary())
    channels = 1 if backbone.channels == 1 else headers.channels
    source = ImageSource(records, channels=channels, on_bad_file=config.on_bad_file)

    def transform(element: dict[str, Any]) -> dict[str, Any]:
        image = element["image"]
        views = {"image": geometry.square(image, backbone.preprocessing.size), "pixels": pixels.grey_pixels(image)}
        return {"index": element["index"], **views}

    devices = jax.local_device_count()
    size = min(_BATCH, -(-len(records) // devices)) * devices
    with progress.bar("features", len(records)) as bar:

        def shown(batches: Iterator[pipeline.Batch]) -> Iterator[pipeline.Batch]:
            for place, batch in enumerate(batches, start=1):
                yield batch
                bar(min(place * size, len(records)), "")

        batches = pipeline.evaluation_batches(source, transform, batch_size=size, threads=config.threads)
        features = extract(backbone, shown(batches))
    return ExtractedCases(records.take(features.columns["index"]), features, [*headers.bad, *source.skipped])


def _read(config: StudyConfig) -> Records:
    records = read_records(
        config.data,
        labelled=True,
        data_root=config.data_root,
        group_regex=config.group_regex,
        positive_class=config.positive_class,
        uncertain=config.uncertain,
        path_column=config.path_column,
        label_column=config.label_column,
        on_bad_file=config.on_bad_file,
    )
    print(records.summary())
    return records


def make_study(
    config: StudyConfig,
    protocol: str,
    records: Records,
    settings: Sequence[Any],
    criterion: Criterion,
    recipe: Mapping[str, Any],
) -> Study:
    """The study of a protocol on the data's own folds, or on those that the configuration asks for."""
    return Study(
        out=Path(config.out),
        task_name=config.task or records.task,
        starting_point=config.starting_point or name_of(config.init),
        protocol=protocol,
        seed=config.seed,
        selection=config.selection,
        criterion=criterion,
        records=records,
        folds=make_folds(records, config.folds, config.seed),
        settings=settings,
        recipe=recipe,
    )


def run_pixels(study: Study, small_images: np.ndarray) -> None:
    """Scores the trivial baseline on a study's folds, as a study of its own in the folder `pixels`.

    Args:
      study: gives cases and folds.
      small_images: float32 [N, 32²] of `pixels.grey_pixels`.
    """
    method = f"logistic regression on {pixels.SIDE}×{pixels.SIDE} grey pixels"
    baseline = dataclasses.replace(
        study,
        out=study.out / "pixels",
        starting_point="pixels",
        protocol="pixels",
        settings=(pixels.LogisticPixels(),),
        criterion="val_auc",
        recipe={"method": method},
    )
    if not (baseline.out / "results.json").exists():
        results = baseline.run(pixels.protocol(small_images, study.labels, study.task))
        mean = results["selection"]["mean_auc"]
        print(f"baseline, {method}: mean AUC {'none' if mean is None else f'{mean:.3f}'}", flush=True)


def make_classifier(config: FinetuneConfig, backbone: Backbone, task: Task) -> tuple[Classifier, dict[str, float]]:
    """The backbone with a new head, and what is trained of it; prints how much that is.

    Args:
      config: of the run.
      backbone: becomes part of the classifier; frozen BatchNorms are marked in place.
      task: gives the number of outputs.

    Returns:
      The classifier, and a multiplier of the learning rate for the path of each parameter that is trained.

    Raises:
      UsageError: a batch size that leaves BatchNorm a single value.
    """
    classifier = Classifier(backbone, **head_form(config, backbone, task), rngs=nnx.Rngs(0))
    weights = {path: array.size for path, array in tree.weights(classifier).items()}
    rates = {path: rate for path in weights if (rate := tree.match(path, RATES[config.mode])) is not None}
    if config.frozen_batchnorm == "inference":
        freeze_batchnorm(classifier, rates)
    size = backbone.preprocessing.size
    for batch_size in config.batch_sizes:
        try:
            backbone.check_batch(batch_size, size, size)
        except ValueError as error:
            raise UsageError(f"batch_sizes {batch_size} at image_size {size}: {error}") from error
    trained, total = sum(weights[path] for path in rates), sum(weights.values())
    print(f"{config.mode}: {trained:,} of {total:,} parameters are trained")
    return classifier, rates


def head_form(config: FinetuneConfig, backbone: Backbone, task: Task) -> dict[str, Any]:
    """Arguments of a `Classifier`: only a backbone with a final norm can have it applied a second time."""
    renormalise = config.classifier.renormalise and backbone.final_norm is not None
    return {"outputs": task.outputs, "hidden": config.classifier.hidden, "renormalise": renormalise}


def make_finetuning(
    config: FinetuneConfig, study: Study, classifier: Classifier, rates: Mapping[str, float], images: np.ndarray
) -> Finetuning:
    """The protocol of a fine-tuning run.

    Args:
      config: of the run.
      study: gives task, labels and names.
      classifier, rates: from `make_classifier`.
      images: uint8 [N, S, S, C], of all cases.
    """
    backbone, form = classifier.backbone, head_form(config, classifier.backbone, study.task)
    graph, params = tree.split(classifier)
    decays = {path: config.weight_decay * share for path, share in multipliers(rates, WEIGHT_DECAY).items()}
    steps = {}
    for batch_size in config.batch_sizes:
        mesh = sharding.widest_mesh(batch_size, config.fsdp)
        steps[batch_size] = make_steps(graph, params, study.task.loss, rates, decays, mesh)
        if mesh.size < jax.device_count():
            print(f"batches of {batch_size} use {mesh.size} of {jax.device_count()} devices: more do not divide them")

    def write_weights(unit: Unit, epoch: int, params: Params, folder: Path) -> None:
        write_model(
            folder,
            backbone.name,
            backbone.arguments,
            params,
            backbone.preprocessing,
            source={"run": study.out.name, "starting_point": study.starting_point},
            details={
                **{"task": study.task_name, "kind": study.task.kind, "classes": list(study.task.classes)},
                **{"fold": unit.number, "setting": unit.setting.name, "epoch": epoch},
                **{"classifier": form, "image_size": images.shape[1], "normalisation": config.normalisation},
            },
            overwrite=True,
        )

    return Finetuning(
        task=study.task,
        images=images,
        labels=study.labels,
        steps=steps,
        start=lambda seed: tree.split(Classifier(backbone, **form, rngs=nnx.Rngs(seed)))[1],
        epochs=config.epochs,
        epoch_selection=config.epoch_selection,
        augment=config.augment,
        threads=config.threads,
        seed=config.seed,
        write_weights=write_weights,
    )


def finetuning_recipe(
    config: FinetuneConfig, classifier: Classifier, rates: Mapping[str, float]
) -> dict[str, int | float | str]:
    """How a fine-tuning run is done, for its results."""
    params, head = tree.split(classifier)[1], config.classifier
    twice = classifier.renormalise and ", norm applied twice"
    augment = dataclasses.asdict(config.augment).items()
    return {
        **_common_recipe(config, classifier.backbone),
        "mode": config.mode,
        "trained_parameters": sum(params[path].size for path in rates),
        "head": (f"hidden {head.hidden}" if head.hidden else "linear") + (twice or ""),
        "epochs": config.epochs,
        "weights_kept": config.epoch_selection,
        "weight_decay": config.weight_decay,
        "augment": ", ".join(f"{name} {_text(value)}" for name, value in augment),
    }


def knn_recipe(config: KNNConfig, backbone: Backbone) -> dict[str, int | float | str]:
    """How k-NN on frozen features is done, for its results."""
    weights = "equal" if config.temperature is None else f"exp(similarity / {config.temperature:g})"
    return {**_common_recipe(config, backbone), "features": config.features, "votes": weights}


def _common_recipe(config: StudyConfig, backbone: Backbone) -> dict[str, int | float | str]:
    form, published = dataclasses.asdict(backbone.arguments), dataclasses.asdict(ARGUMENTS[backbone.name])
    own = ", ".join(f"{name} {_text(value)}" for name, value in form.items() if value != published[name])
    return {
        "init": config.init or "random weights",
        "model": backbone.name + (f" ({own})" if own else ""),
        "image_size": backbone.preprocessing.size,
        "normalisation": config.normalisation,
    }


def _text(value: Any) -> str:
    return "–".join(map(_text, value)) if isinstance(value, tuple) else f"{value}"
