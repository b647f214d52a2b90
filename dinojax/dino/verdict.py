"""Whether a pre-training run learned anything, in words: "is my loss normal?"."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

_LAST = 10  # logged steps that the end is the mean of
_CLEARLY = 0.05  # share of log K that the loss has to fall by
_CHANCE = 2.0  # standard errors within which two accuracies count as equal


def verdict(lines: Sequence[Mapping[str, Any]], prototypes: int, dino_weight: float, margin: float = 0.02) -> str:
    """One line on the DINO objective and one on the probe, each where it was logged.

    Args:
      lines: of `metrics.jsonl`.
      prototypes: K; loss and entropy of the targets are log K when nothing is learned.
      dino_weight: that the logged DINO terms were multiplied by.
      margin: nats within which an entropy counts as one of its limits; `guard.target_entropy`.
    """
    trained = [line for line in lines if "loss" in line][-_LAST:]
    said = [_objective(trained, math.log(prototypes), dino_weight, margin)] if trained and dino_weight else []
    probes = {int(line["step"]): float(line["probe"]) for line in lines if "probe" in line}
    pixels = next((float(line["probe_pixels"]) for line in lines if "probe_pixels" in line), None)
    if len(probes) > 1 and 0 in probes:
        images = next(int(line["probe_images"]) for line in lines if "probe_images" in line)
        said.append(_probe(probes, images, pixels))
    return "\n".join(said)


def _objective(lines: Sequence[Mapping[str, Any]], uniform: float, weight: float, margin: float) -> str:
    def mean(*names: str) -> float:
        return sum(float(line[name]) for line in lines for name in names) / len(lines)

    loss = mean("dino_local", "dino_global") / weight
    entropy, together = mean("target_entropy"), mean("mean_target_entropy")
    over = f" (mean of the last {len(lines)} logged steps)" if len(lines) > 1 else ""
    numbers = f"DINO loss {loss:.2f} and entropy of the targets {entropy:.2f}{over}, log(prototypes) is {uniform:.2f}"
    if together < margin:
        return f"collapsed to one prototype: {numbers}; all images have the same target"
    if entropy > uniform - margin:
        return f"nothing learned, uniform targets: {numbers}; lower teacher.temperature"
    if loss > uniform * (1 - _CLEARLY):
        return f"little learned yet: {numbers}; the loss has to fall clearly below it, with more steps or a higher rate"
    return f"learned: {numbers}"


def _probe(probes: Mapping[int, float], images: int, pixels: float | None) -> str:
    start, end = probes[0], probes[max(probes)]
    # Of the difference between two accuracies on the same images, were they independent: an upper bound where the
    # same images tend to be right, as they do.
    error = math.sqrt((start * (1 - start) + end * (1 - end)) / images)
    best = max(probes, key=lambda step: (probes[step], -step))
    change = f"are as good as at the start, as far as {images} images tell"
    if abs(end - start) > _CHANCE * error:
        change = "became better than at the start" if end > start else "became worse than at the start"
    told = f"the features {change}: probe {start:.3f} at the start, {end:.3f} at the end, best {probes[best]:.3f}"
    told += f" at step {best}"
    if pixels is not None:
        told += f"; pixels alone reach {pixels:.3f}" + (", more than the features" if pixels > end else "")
    return told
