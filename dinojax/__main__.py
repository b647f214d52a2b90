"""`dinojax VERB`, or `python -m dinojax VERB`."""

import atexit
import contextlib
import importlib.metadata
import io
import os
import sys
from pathlib import Path

from dinojax.errors import RunError
from dinojax.verbs import VERBS, run

# glibc uses huge pages, and keeps freed memory for the next step, only if these are set before the process starts.
HUGE_PAGES = (
    "GLIBC_TUNABLES",
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000:glibc.malloc.arena_max=1",
)

_LESS_MEMORY = "lower batch_size; or, in pretrain, raise accumulate and groups, or spread the state with fsdp"


def main() -> int:
    """Runs a verb. Returns 0 done, 1 failed, 2 wrong arguments, 3 stopped by a signal with the state saved."""
    for stream in (sys.stdout, sys.stderr):  # file names and signs that the terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: dinojax VERB ... (each with --help; --debug shows tracebacks; --version)\n")
        print("\n".join(f"  {name:<{max(map(len, VERBS))}}  {verb.line}" for name, verb in VERBS.items()))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print("\n".join(f"{name} {importlib.metadata.version(name)}" for name in ("dinojax", "jax", "flax")))
        return 0
    verb = " ".join(arguments[: 2 if arguments[0] == "evaluate" else 1])
    try:
        run(arguments)
    except RunError as error:
        if debug:
            raise
        print(f"dinojax {verb}: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:
        return 1  # whoever read the output has seen enough
    except OSError as error:
        if debug:
            raise
        where = (
            f": {error.filename}" if error.filename else "; is the disk full that --out or the temporary folder is on?"
        )
        print(f"dinojax {verb}: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:  # XLA's own errors are RuntimeErrors
        if debug or not (isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)):
            raise
        print(f"dinojax {verb}: out of memory ({' '.join(str(error).split())[:200]}); {_LESS_MEMORY}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"dinojax {verb}: interrupted; nothing that was not saved before is kept", file=sys.stderr)
        return 1
    return 0


def use_huge_pages() -> None:
    """Restarts this process with huge pages where the kernel grants them on demand.

    A pre-training step on a CPU otherwise spends much of its time in the kernel, which hands over the memory of its
    arrays in pages of 4 KiB, again in every step (BENCHMARKS.md). The user's own setting is kept.
    """
    name, value = HUGE_PAGES
    granted = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if name not in os.environ and granted.exists() and "[madvise]" in granted.read_text():
        os.environ[name] = value
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def command() -> None:
    """The installed command `dinojax`."""
    use_huge_pages()
    status = 1  # of an error that shows its traceback

    def leave() -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)

    # Registered first, so called last. Before Python 3.14 the interpreter's own end kills the threads that wait for it,
    # which aborts the process where one of them is in C++: a run that saved its state would not end with its status.
    atexit.register(leave)
    status = main()
    sys.exit(status)


if __name__ == "__main__":
    command()
