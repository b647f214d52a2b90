"""What a pre-training run leaves in its directory for its user, beside metrics, checkpoints and models."""

import time
from collections.abc import Callable
from pathlib import Path

from dinojax import progress
from dinojax.config.pretrain import PretrainConfig
from dinojax.data.fingerprints import hash_all
from dinojax.data.headers import list_skipped
from dinojax.data.records import Records
from dinojax.dino.verdict import verdict
from dinojax.errors import RunError
from dinojax.models.provenance import PRETRAINING, write_corpus
from dinojax.reporting import plots
from dinojax.runs.files import reason, write_text
from dinojax.runs.metrics import read_metrics

_PAUSES = 30
"""Of drawing: drawing the 10,000 lines of a long run takes seconds."""
_FIRST_SECONDS = 10
"""Before this a run has little to show."""


class Curves:
    """`figures/curves.png`, drawn anew while a run goes on. What goes wrong is printed once, and never ends the run."""

    def __init__(self, out: Path, config: PretrainConfig) -> None:
        self._metrics, self._path = out / "metrics.jsonl", out / "figures" / "curves.png"
        self._form = config.head.prototypes, config.loss.dino_weight, 2 * config.batch_size
        self._due, self._failed = time.monotonic() + _FIRST_SECONDS, False

    def redraw(self) -> None:
        """Draws them, unless that would take more than a small share of the run's time."""
        if time.monotonic() >= self._due:
            self.draw()

    def draw(self) -> None:
        """Draws them."""
        began = time.monotonic()
        try:
            plots.plot_metrics(self._metrics, self._path, *self._form)
        except Exception as error:  # whatever matplotlib or a full disk leads to
            if not self._failed:
                print(f"{self._path} is out of date: {reason(error)}", flush=True)
            self._failed = True
        ended = time.monotonic()
        self._due = ended + _PAUSES * (ended - began)


def leave_figures(out: Path, curves: Curves, skipped: Callable[[], list[tuple[str, str]]]) -> None:
    """Draws the curves and lists the files that were skipped; a failure here must not hide an error of the run."""
    curves.draw()
    try:
        list_skipped(skipped(), out / "skipped_files.csv")
    except (OSError, RunError) as error:
        print(f"{out / 'skipped_files.csv'} is out of date: {reason(error)}")


def leave_verdict(out: Path, config: PretrainConfig) -> str:
    """Writes `verdict.txt`, and returns what it says; see `verdict`."""
    lines = read_metrics(out / "metrics.jsonl")
    told = verdict(lines, config.head.prototypes, config.loss.dino_weight, config.guard.target_entropy)
    write_text(out / "verdict.txt", f"{told}\n")
    return told


def leave_corpus(out: Path, records: Records, config: PretrainConfig) -> None:
    """Keeps the hashes of the corpus' pixels beside the models of a run, so that a test image among them is known.

    Every image is decoded once more: as long as an epoch's decoding, without its crops.
    """
    if not config.corpus_hashes:
        return
    with progress.bar("hashing the corpus", len(records)) as bar:
        hashes = hash_all(records, config.threads, lambda done: bar(done, ""))
    for name in ("model", "model_best"):
        if (out / name / "model.json").is_file():
            write_corpus(out / name, {PRETRAINING: hashes}, config.init)
