"""What a pre-training run leaves in its directory for its user, beside metrics, checkpoints and models."""

from collections.abc import Callable
from pathlib import Path

from dinojax.config.pretrain import PretrainConfig
from dinojax.data.decode import list_skipped
from dinojax.errors import RunError
from dinojax.reporting import plots
from dinojax.runs.files import reason


def leave_figures(out: Path, config: PretrainConfig, skipped: Callable[[], list[tuple[str, str]]]) -> None:
    """Draws the curves and lists the files that were skipped; a failure here must not hide an error of the run."""
    try:
        curves = out / "figures" / "curves.png"
        plots.plot_metrics(out / "metrics.jsonl", curves, config.head.prototypes, config.loss.dino_weight)
        list_skipped(skipped(), out / "skipped_files.csv")
    except (OSError, RunError) as error:
        print(f"the curves in {out / 'figures'} or skipped_files.csv are out of date: {reason(error)}")
