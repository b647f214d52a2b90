"""Several processes that train one model together, through `jax.distributed`."""

import contextlib
import hashlib
import os
import sys
import threading
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from dinojax.config.pretrain import DistributedConfig
from dinojax.errors import RunError, UsageError

_GRACE_S = 10.0
"""How long a process that failed waits for the others, which may be waiting for its share of a step."""


@contextlib.contextmanager
def joined(config: DistributedConfig) -> Iterator[bool]:
    """Joins the processes, so that `jax.devices()` are those of all; must be entered before JAX computes anything.

    Only the first process prints: all of them would print the same.

    Yields:
      Whether this is the first process, which writes the run's files.

    Raises:
      UsageError: some of `coordinator`, `processes` and `process` are missing.
      RunError: the other processes were not found.
    """
    given = (config.coordinator, config.processes, config.process)
    if given == (None, None, None) and not config.cluster:
        yield True
        return
    if None in given and not config.cluster:
        raise UsageError(
            "distributed.coordinator, .processes and .process go together; or set distributed.cluster true"
        )
    try:
        jax.distributed.initialize(config.coordinator, config.processes, config.process)
    except (RuntimeError, ValueError) as error:
        advice = "; outside a cluster, set distributed.coordinator, .processes and .process" if config.cluster else ""
        raise RunError(f"the processes did not find one another: {' '.join(str(error).split())}{advice}") from error
    try:
        if jax.process_index() == 0:
            yield True
        else:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
                yield False
    except Exception as error:
        with _exit_after_grace(error):
            jax.distributed.shutdown()
        raise
    jax.distributed.shutdown()


@contextlib.contextmanager
def _exit_after_grace(error: Exception) -> Iterator[None]:
    """Ends this process if the block takes too long; the others then end too, as one of them is missing."""

    def exit_now() -> None:
        print(f"dinojax: {error}; the other processes end with this one", file=sys.stderr, flush=True)
        os._exit(error.status if isinstance(error, RunError) else 1)

    timer = threading.Timer(_GRACE_S, exit_now)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def check_agreement(texts: Mapping[str, str]) -> None:
    """Compares texts, by name, that all processes must have in common, such as the list of images.

    Raises:
      RunError: names those that differ.
    """
    if jax.process_count() == 1:
        return
    digests = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts.values()]
    found = np.asarray(multihost_utils.process_allgather(np.stack(digests)))  # [processes, texts, 32]
    differing = [name for name, own in zip(texts, found.swapaxes(0, 1), strict=True) if (own != own[0]).any()]
    if differing:
        raise RunError(f"the processes differ in their {' and '.join(differing)}; start all with the same command")
