"""What measures the teacher while it is trained: an interface, and the k-NN probe as an evaluator."""

import dataclasses
from collections.abc import Callable

import numpy as np

from dinojax import tree
from dinojax.protocols.probe import Probe

Measure = Callable[[tree.Params], dict[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """A measurement that the training loop takes now and then; its results are further metrics."""

    name: str
    """Its section of the configuration, for messages and for `time.<name>_seconds`."""
    due: np.ndarray
    """bool [steps]: after which steps it measures."""
    measure: Measure
    """Takes the teacher's parameters (those of the backbone under `backbone.`), whole, on one device."""
    begin: Measure
    """The same before the first step, with the baselines that the metrics are to be compared with."""
    score: str | None = None
    """The metric, the higher the better, by which the best teacher is kept."""
    stop_below: float | None = None
    """Stops the run when the score has fallen this far below its start."""


def every(steps: int, interval: int) -> np.ndarray:
    """Every so many steps, and the last one: bool [steps], the first place being step 1."""
    done = np.arange(1, steps + 1)
    return (done % interval == 0) | (done == steps)


def knn_evaluator(probe: Probe, due: np.ndarray, stop_below: float | None) -> Evaluator:
    """The k-NN probe of the backbone's class token: `probe` and `probe_balanced`, both in 0..1."""

    def measure(teacher: tree.Params) -> dict[str, float]:
        return probe.measure(tree.subtree("backbone", teacher))

    def begin(teacher: tree.Params) -> dict[str, float]:
        return measure(teacher) | probe.baselines()

    return Evaluator("probe", due, measure, begin, score="probe", stop_below=stop_below)
