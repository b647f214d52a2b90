"""A run's epochs as steps: the one place where they are converted."""

import dataclasses

from dinojax.config.pretrain import OptimConfig, TeacherConfig
from dinojax.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The length of a run and of its phases, in steps.

    The backbone is frozen for the first `head_warmup` steps, which the schedules, and so `lr_warmup` and
    `temperature_warmup`, come after.
    """

    steps: int
    steps_per_epoch: int = 1
    head_warmup: int = 0
    lr_warmup: int = 0
    temperature_warmup: int = 0
    frozen_prototypes: int = 0
    """Counted from the first step of the run."""

    @property
    def warmup(self) -> int:
        """Steps until backbone and heads are trained at the peak learning rate."""
        return self.head_warmup + self.lr_warmup


def make_timeline(
    images: int,
    *,
    batch_size: int,
    epochs: float,
    steps: int | None,
    steps_per_epoch: int | None,
    head_warmup: int,
    optim: OptimConfig,
    teacher: TeacherConfig,
) -> Timeline:
    """Lays a run out in steps.

    Args:
      images: number of images of the data set, a batch at least.
      batch_size: of the whole batch.
      epochs: length of the run, the unit of the warm-ups in `optim` and `teacher`.
      steps: length of the run where it is given in steps; the warm-ups are stretched or squeezed to it.
      steps_per_epoch: None: the images divided by the batch size.
      head_warmup: steps before the schedules.
      optim, teacher: their warm-ups are read, and for how long the prototypes are frozen.

    Raises:
      UsageError: the epochs make no step, or the head's warm-up leaves none.
    """
    each = steps_per_epoch or images // batch_size
    total = steps or round(epochs * each)
    if total < 1:
        raise UsageError(f"epochs {epochs:g} make no step; raise them")
    if head_warmup >= total:
        raise UsageError(f"head_warmup_steps {head_warmup} leave none of the {total} steps to the backbone; lower them")

    def in_steps(length: float) -> int:
        return round(length * (total - head_warmup) / epochs)

    return Timeline(
        steps=total,
        steps_per_epoch=each,
        head_warmup=head_warmup,
        lr_warmup=in_steps(optim.warmup_epochs),
        temperature_warmup=in_steps(teacher.temperature_warmup_epochs),
        frozen_prototypes=in_steps(optim.freeze_prototypes_epochs),
    )
