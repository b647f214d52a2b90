"""Several processes that train one model together, through `jax.distributed`."""

import contextlib
import os
from collections.abc import Iterator

import jax

from dinojax.config import DistributedConfig
from dinojax.errors import RunError, UsageError


@contextlib.contextmanager
def joined(config: DistributedConfig) -> Iterator[bool]:
    """Within it, `jax.devices()` are those of all processes; must be entered before JAX computes anything.

    The output of all processes but the first is dropped: they all would say the same.

    Yields:
      Whether this is the first process, which writes the run's files.

    Raises:
      UsageError: some of `coordinator`, `processes` and `process` are missing.
      RunError: the others did not come.
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
        raise RunError(f"the processes did not find one another: {' '.join(str(error).split())}") from error
    try:
        if jax.process_index() == 0:
            yield True
        else:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
                yield False
    finally:
        jax.distributed.shutdown()
