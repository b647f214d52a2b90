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
from dinojax.config.finetune import FinetuneConfig
from dinojax.config.study import StudyConfig
from dinojax.data import pipeline
from dinojax.data.duplicates import LIMIT, Twins, drop_duplicates, find_twins
from dinojax.data.facts import Facts
from dinojax.data.headers import Headers
from dinojax.data.memory import Decoded, decode_all
from dinojax.data.opening import open_images
from dinojax.data.reading import read_labelled
from dinojax.data.records import Fold, Records
from dinojax.data.sources import ImageSource
from dinojax.data.splits import make_folds
from dinojax.errors import UsageError
from dinojax.levels import Rule
from dinojax.models import Backbone, Preprocessing, create_model, provenance
from dinojax.models.channels import check_readable, with_input_channels
from dinojax.models.heads import Classifier
from dinojax.models.resnet import freeze_batchnorm
from dinojax.models.store import head_left_out, load_backbone, write_model
from dinojax.optim import WEIGHT_DECAY, multipliers
from dinojax.protocols import pixels
from dinojax.protocols.features import extract
from dinojax.protocols.finetuning import RATES, Finetuning, make_steps
from dinojax.protocols.study import Study, Unit, name_of
from dinojax.protocols.task import Task
from dinojax.reporting.selection import Criterion
from dinojax.seeds import derive
from dinojax.tree import Params
from dinojax.wording import counted

_BATCH = 64  # images whose features a device computes at a time


def make_backbone(config: StudyConfig) -> Backbone:
    """The model of `init`, or one with random weights, with the preprocessing and the channels that this study uses.

    Raises:
      UsageError: there is no such model, or it does not read images of this size or cannot be made to read so many
        channels.
    """
    if config.init is not None:
        if note := head_left_out(config.init):
            print(note)
        backbone = load_backbone(config.init)
    else:
        given = {name: value for name, value in dataclasses.asdict(config.model).items() if value is not None}
        # The very weights that pre-training with this seed would begin from.
        backbone = create_model(rngs=nnx.Rngs(derive(config.seed, "backbone")), **given)
    size = config.image_size or backbone.preprocessing.size
    try:
        backbone.check_size(size, size)
    except ValueError as error:
        raise UsageError(f"image_size {size}: {error}") from error
    backbone.preprocessing = dataclasses.replace(backbone.preprocessing, size=size)
    if config.normalisation == "none":
        plain = Preprocessing(size, (0.0,) * backbone.channels, (1.0,) * backbone.channels)
        backbone.preprocessing = dataclasses.replace(plain, intensity=backbone.preprocessing.intensity)
    # After the normalisation, so that what is folded is what the study would feed to all channels.
    return with_input_channels(backbone, config.input_channels)


class Cases(NamedTuple):
    """A labelled data set before its images are decoded, and the folds that divide it."""

    records: Records
    headers: Headers
    folds: tuple[Fold, ...]
    twins: Twins | None = None
    """Which of them are the same; None where they are too many to decode for that alone."""
    dropped: Sequence[Mapping[str, str]] = ()
    """Rows of `dropped_duplicates.csv`."""


def read_cases(config: StudyConfig, intensity: Sequence[Rule]) -> Cases:
    """Lists the cases, looks at their files' headers, compares the images, and divides them into folds.

    Args:
      config: of the run.
      intensity: the rules of the model that will read them, where it has any.
    """
    records = read_labelled(config.data, config, positive_class=config.positive_class, on_bad_file=config.on_bad_file)
    records, headers = open_images(records, config, on_bad_file=config.on_bad_file, known=intensity)
    wanted = config.drop_duplicates or len(records) <= LIMIT
    twins, rows = find_twins(records, config.threads) if wanted else None, []
    if twins is not None and config.drop_duplicates:
        kept, rows = drop_duplicates(records, twins)
        records, twins = records.take(kept), twins.take(kept)
        contrary = sum(row["why"].startswith("labels differ") for row in rows)
        line = f"{counted(len(rows), 'duplicate')} (dropped_duplicates.csv), of which {contrary} with differing labels"
        records = dataclasses.replace(records, left_out=(*records.left_out, line))
    return Cases(records, headers, _folds(config, records, twins), twins, rows)


def _folds(config: StudyConfig, records: Records, twins: Twins | None) -> tuple[Fold, ...]:
    first = None if twins is None else twins.first
    return make_folds(records, config.folds, config.fold_seed, first, config.allow_shared_patients)


def without_skipped(config: StudyConfig, cases: Cases, records: Records) -> Cases:
    """The cases that could be decoded; the folds are made anew where some could not."""
    if len(records) == len(cases.records):
        return cases
    print(f"{len(cases.records) - len(records)} images cannot be decoded and are left out; the folds are made anew")
    read = set(zip(records.paths.tolist(), records.frames.tolist(), strict=True))
    before = zip(cases.records.paths.tolist(), cases.records.frames.tolist(), strict=True)
    twins = cases.twins and cases.twins.take(np.array([place for place, case in enumerate(before) if case in read]))
    return cases._replace(records=records, folds=_folds(config, records, twins), twins=twins)


def decode_cases(config: StudyConfig, backbone: Backbone, cases: Cases) -> Decoded:
    """All images in memory: squares for the model (`image`), and small grey ones for the baseline (`pixels`)."""
    headers = cases.headers
    check_readable(backbone.channels, headers.channels, headers.stacked)
    square = partial(geometry.square, size=backbone.preprocessing.size)
    decoded = decode_all(
        cases.records,
        {"image": square, "pixels": partial(pixels.grey_pixels, stacked=headers.stacked)},
        channels=1 if backbone.channels == 1 else headers.channels,
        threads=config.threads,
        on_bad_file=config.on_bad_file,
    )
    return decoded._replace(skipped=[*headers.bad, *decoded.skipped])


def extract_cases(config: StudyConfig, backbone: Backbone, cases: Cases) -> Decoded:
    """Runs a frozen backbone over all images, which are not kept.

    Returns:
      The views `class_token` and `mean_patch` of `features.extract`, and `pixels`, small grey images for the baseline.
    """
    records, headers = cases.records, cases.headers
    check_readable(backbone.channels, headers.channels, headers.stacked)
    channels = 1 if backbone.channels == 1 else headers.channels
    source = ImageSource(records, channels=channels, on_bad_file=config.on_bad_file)

    def transform(element: dict[str, Any]) -> dict[str, Any]:
        image = element["image"]
        square = geometry.square(image, backbone.preprocessing.size)
        return {"index": element["index"], "image": square, "pixels": pixels.grey_pixels(image, headers.stacked)}

    devices = jax.local_device_count()
    size = min(_BATCH, -(-len(records) // devices)) * devices
    with progress.bar("features", len(records)) as bar:

        def shown(batches: Iterator[pipeline.Batch]) -> Iterator[pipeline.Batch]:
            for place, batch in enumerate(batches, start=1):
                yield batch
                bar(min(place * size, len(records)), "")

        batches = pipeline.evaluation_batches(source, transform, batch_size=size, threads=config.threads)
        views = extract(backbone, shown(batches))
    return Decoded(records.take(views.pop("index")), views, [*headers.bad, *source.skipped])


def make_study(
    config: StudyConfig,
    protocol: str,
    cases: Cases,
    settings: Sequence[Any],
    criterion: Criterion,
    recipe: Mapping[str, Any],
    facts: Facts,
) -> Study:
    """The study of a protocol on the cases' folds."""
    return Study(
        out=Path(config.out),
        task_name=config.task or cases.records.task,
        starting_point=config.starting_point or name_of(config.init),
        protocol=protocol,
        seed=config.seed,
        selection=config.selection,
        criterion=criterion,
        records=cases.records,
        folds=cases.folds,
        settings=settings,
        recipe=recipe,
        facts=facts,
    )


def make_classifier(config: FinetuneConfig, backbone: Backbone, task: Task) -> tuple[Classifier, dict[str, float]]:
    """The backbone with a new head, and what is trained of it.

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
    return classifier, rates


def head_form(config: FinetuneConfig, backbone: Backbone, task: Task) -> dict[str, Any]:
    """Arguments of a `Classifier`: only a backbone with a final norm can have it applied a second time."""
    renormalise = config.classifier.renormalise and backbone.final_norm is not None
    return {"outputs": task.outputs, "hidden": config.classifier.hidden, "renormalise": renormalise}


def make_finetuning(
    config: FinetuneConfig,
    study: Study,
    classifier: Classifier,
    rates: Mapping[str, float],
    images: np.ndarray,
    twins: Twins | None = None,
) -> Finetuning:
    """The protocol of a fine-tuning run.

    Args:
      config: of the run.
      study: gives task, labels and names.
      classifier, rates: from `make_classifier`.
      images: uint8 [N, S, S, C], of all cases.
      twins: gives the hashes of the training images, which are kept beside the weights.
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
        if twins is not None:
            seen = {provenance.TRAINING: twins.pixels[np.concatenate([unit.fold.train, unit.fold.val])]}
            provenance.write_corpus(folder, seen, config.init)

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
