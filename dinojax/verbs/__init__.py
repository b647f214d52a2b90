"""The verbs. Each has a module here, which is imported only after its configuration has been read.

So `--help` and a mistyped key answer at once, and JAX is loaded only by what computes.
"""

import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dinojax.config import parser
from dinojax.config.audit import AuditConfig
from dinojax.config.demo import DemoConfig
from dinojax.config.evaluate import KNNConfig
from dinojax.config.finetune import FinetuneConfig
from dinojax.config.index import IndexConfig
from dinojax.config.phantoms import PhantomsConfig
from dinojax.config.pretrain import PretrainConfig
from dinojax.config.report import ReportConfig
from dinojax.config.splits import SplitsConfig
from dinojax.errors import UsageError


class Verb(NamedTuple):
    """A command: a line of help, and what it can be told. The first word of its name is its module's."""

    line: str
    config: type


VERBS = {
    "demo": Verb("the main job on phantoms: pre-train, score two starting points, report", DemoConfig),
    "phantoms": Verb("write a phantom data set: images, manifest, fold files", PhantomsConfig),
    "index": Verb("list every image below a folder in a manifest, with what its header says", IndexConfig),
    "splits": Verb("write stratified, patient-grouped folds once for all runs", SplitsConfig),
    "audit": Verb("find duplicates and shared patients inside data sets, their folds and a corpus", AuditConfig),
    "pretrain": Verb("self-supervised pre-training; the same command resumes it", PretrainConfig),
    "finetune": Verb("fine-tune one starting point on every fold with every setting", FinetuneConfig),
    "evaluate knn": Verb("classify by the nearest neighbours of frozen features on every fold", KNNConfig),
    "report": Verb("one table and its plots from several runs", ReportConfig),
}


def run(arguments: Sequence[str]) -> Path:
    """Reads a command line and runs it.

    Returns:
      The directory that was written.

    Raises:
      RunError: what went wrong, in one line; UsageError if it is the command line.
    """
    name = next((" ".join(arguments[:words]) for words in (2, 1) if " ".join(arguments[:words]) in VERBS), None)
    if name is None:
        near = [verb for verb in VERBS if verb.split()[0] == arguments[0]]
        if near and (len(arguments) < 2 or arguments[1].startswith("-")):
            raise UsageError(f"{arguments[0]} needs its protocol: {', '.join(near)} (each with --help)")
        raise UsageError(f"there is no verb {' '.join(arguments[:2])!r}; choose from {', '.join(near or VERBS)}")
    config = parser.parse(VERBS[name].config, arguments[len(name.split()) :], name)
    return importlib.import_module(f"dinojax.verbs.{name.split()[0]}").main(config)
