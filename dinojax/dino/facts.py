"""What a pre-training run says of itself before its first step."""

from collections.abc import Mapping
from typing import Any

from dinojax import costs
from dinojax.config.pretrain import PretrainConfig
from dinojax.data.facts import Facts, data_facts
from dinojax.data.headers import Headers
from dinojax.data.records import Records
from dinojax.dino.memory import gib
from dinojax.dino.state import Timeline
from dinojax.models import Backbone
from dinojax.models.description import describe_model


def run_facts(
    config: PretrainConfig,
    records: Records,
    headers: Headers,
    backbone: Backbone,
    heads: Mapping[str, str],
    probe: str,
    timeline: Timeline,
    dtype: Any,
) -> Facts:
    """Facts that hold on any machine: data, model, heads, probe, precision and work.

    Args:
      config: of the run.
      records, headers: the images, and what their headers say.
      backbone: before the first step.
      heads: by name, where each projection head comes from; none of a run that resumes.
      probe: its line.
      timeline: gives the steps.
      dtype: of the matrix products.
    """
    crops, origin = config.crops, config.init or "random weights"
    images = f"{config.batch_size} images" + (f" in {config.accumulate} slices" if config.accumulate > 1 else "")
    views = f"{crops.global_size} pixels × 2" + (
        f", {crops.local_size} pixels × {crops.locals}" if crops.locals else ""
    )
    epochs = timeline.steps * config.batch_size / len(records)
    facts = data_facts(records, headers)
    facts["model"] = describe_model(backbone, origin, crops.global_size)
    if heads:
        facts["heads"] = [f"{name}: {whence}" for name, whence in heads.items()]
    facts["probe"] = probe or "none; probe.data names a labelled data set"
    facts["precision"] = f"matrix products {dtype}; parameters, losses and averages float32"
    facts["work"] = f"{timeline.steps} steps of {images} (each image {epochs:.3g} times); crops of {views}"
    return facts


def machine_facts(resuming: bool, needed: float) -> Facts:
    """Facts of this machine and this start of the run, which needs so many bytes at least."""
    heads: Facts = {"heads": "those of the run that resumes"} if resuming else {}
    return heads | {"machine": costs.machine(), "memory": f"at least {gib(needed)} for a training step"}
