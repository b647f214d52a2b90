"""What a pre-training run leaves in its directory for its user, beside metrics, checkpoints and models."""

from collections.abc import Callable
from pathlib import Path

from dinojax.config.pretrain import PretrainConfig
from dinojax.data.decode import list_skipped
from dinojax.dino.verdict import verdict
from dinojax.errors import RunError
from dinojax.reporting import plots
from dinojax.runs.files import reason, write_text
from dinojax.runs.metrics import read_metrics


def leave_figures(out: Path, config: PretrainConfig, skipped: Callable[[], list[tuple[str, str]]]) -> None:
    """Draws the curves and lists the files that were skipped; a failure here must not hide an error of the run."""
    try:
        curves = out / "figures" / "curves.png"
        plots.plot_metrics(out / "metrics.jsonl", curves, config.head.prototypes, config.loss.dino_weight)
        list_skipped(skipped(), out / "skipped_files.csv")
    except (OSError, RunError) as error:
        print(f"the curves in {out / 'figures'} or skipped_files.csv are out of date: {reason(error)}")


def leave_verdict(out: Path, config: PretrainConfig) -> str:
    """Writes `verdict.txt`, and returns what it says; see `verdict`."""
    lines = read_metrics(out / "metrics.jsonl")
    told = verdict(lines, config.head.prototypes, config.loss.dino_weight, config.guard.target_entropy)
    write_text(out / "verdict.txt", f"{told}\n")
    return told
