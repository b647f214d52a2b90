"""What a run's metrics say at its end, in words; on lines as runs write them."""

from typing import Any

import pytest

from dinojax.dino.verdict import verdict

# Local and global DINO term, entropy of the targets and of their mean, for K = 1024 (log K = 6.93). The first is the
# end of laptop.yaml on brain MRI (BENCHMARKS.md), the others what runs look like that did not get there.
RECORDED = {
    "learned": (1.71, 4.14, 4.41, 6.5),
    "little learned yet": (2.0, 4.92, 6.61, 6.8),
    "nothing learned, uniform targets": (1.98, 4.95, 6.929, 6.93),
    "collapsed to one prototype": (0.001, 0.004, 0.002, 0.003),
}


def line(step: int, local: float, other: float, entropy: float, together: float, **more: float) -> dict[str, Any]:
    terms = {"dino_local": local, "dino_global": other, "target_entropy": entropy, "mean_target_entropy": together}
    return {"step": step, "loss": local + other, **terms, **more}


@pytest.mark.parametrize("outcome", RECORDED)
def test_the_objective(outcome: str) -> None:
    local, other, entropy, together = RECORDED[outcome]
    told = verdict([line(step, local, other, entropy, together) for step in range(1, 4)], 1024, 1.0)
    numbers = f"DINO loss {local + other:.2f} and entropy of the targets {entropy:.2f}"
    assert told.startswith(f"{outcome}: {numbers} (mean of the last 3 logged steps), ")
    assert "log(prototypes) is 6.93" in told
    assert "\n" not in told
    halved = [line(1, local / 2, other / 2, entropy, together)]
    assert verdict(halved, 1024, 0.5).startswith(outcome)


@pytest.mark.parametrize(
    ("start", "probes", "said"),
    [
        (
            0.563,
            (0.655, 0.641),
            "became better than at the start: probe 0.563 at the start, 0.641 at the end, best 0.655 at step 1",
        ),
        (
            0.70,
            (0.71, 0.62),
            "became worse than at the start: probe 0.700 at the start, 0.620 at the end, best 0.710 at step 1",
        ),
        (
            0.70,
            # Two standard errors of the difference are .04.
            (0.60, 0.735),
            "are as good as at the start, as far as 1000 images tell: probe 0.700 at the start, 0.735 at the end, "
            "best 0.735 at step 2",
        ),
        (
            0.70,
            (0.60, 0.50),
            "became worse than at the start: probe 0.700 at the start, 0.500 at the end, best 0.700 at step 0",
        ),
    ],
)
def test_the_probe(start: float, probes: tuple[float, ...], said: str) -> None:
    lines = [{"step": 0, "probe": start, "probe_pixels": 0.65, "probe_images": 1000.0}]
    lines += [line(step, *RECORDED["learned"], probe=probe) for step, probe in enumerate(probes, start=1)]
    told = verdict(lines, 1024, 1.0).splitlines()
    more = ", more than the features" if probes[-1] < 0.65 else ""
    assert told[1] == f"the features {said}; pixels alone reach 0.650{more}"


def test_what_was_not_logged_is_not_judged() -> None:
    assert verdict([], 1024, 1.0) == ""
    assert verdict([line(1, 0.0, 0.0, 6.0, 6.0)], 1024, 0.0) == ""
    assert len(verdict([line(1, *RECORDED["learned"], probe=0.5)], 1024, 1.0).splitlines()) == 1
