"""Which images a model has been trained on, kept beside its weights as hashes of their pixels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dinojax.errors import RunError
from dinojax.runs.files import reason, replacing

FILE = "corpus.npz"
PRETRAINING, TRAINING = "pretraining", "training"
"""Seen without labels, and with them."""

Corpus = Mapping[str, np.ndarray]
"""uint64 [n], sorted, the hashes of the images by how they were seen: `PRETRAINING` or `TRAINING`."""


def read_corpus(directory: str | Path) -> Corpus:
    """What a model directory says of the images that it was trained on; empty where it keeps nothing.

    Raises:
      RunError: the file there cannot be read.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name].astype(np.uint64) for name in (PRETRAINING, TRAINING) if name in stored}
    except Exception as error:  # whatever damage to an archive leads to
        raise RunError(f"{path} cannot be read: {reason(error)}; put back a good copy, or remove it") from error


def write_corpus(directory: str | Path, corpus: Corpus, init: str | None = None) -> None:
    """Writes which images a model has been trained on; 8 bytes an image.

    Args:
      directory: of the model.
      corpus: the images, uint64 [n] in any order.
      init: the model that it began from, whose own images are kept with these.
    """
    before = {} if init is None else read_corpus(init)
    joined = {}
    for name in (PRETRAINING, TRAINING):
        parts = [of[name] for of in (before, corpus) if name in of]
        if parts:
            joined[name] = np.unique(np.concatenate(parts))
    with replacing(Path(directory) / FILE, "wb") as file:
        np.savez(file, **joined)
