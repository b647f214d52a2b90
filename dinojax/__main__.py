"""`python -m dinojax VERB`: a verb is a module of `dinojax.verbs`, imported only when it is asked for."""

import importlib
import os
import sys
from pathlib import Path

from dinojax.errors import RunError

# glibc uses huge pages, and keeps freed memory for the next step, only if these are set before the process starts.
HUGE_PAGES = (
    "GLIBC_TUNABLES",
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=1000000000000:glibc.malloc.arena_max=1",
)

_LESS_MEMORY = "lower batch_size; or, in pretrain, raise accumulate and groups, or spread the state with fsdp"

VERBS = {
    "demo": "the main job on phantoms: pre-train, score two starting points, report",
    "phantoms": "write a phantom data set: images, manifest, fold files",
    "pretrain": "self-supervised pre-training; the same command resumes it",
    "finetune": "fine-tune one starting point on every fold with every setting",
    "evaluate": "score one starting point's frozen features on every fold: evaluate knn",
    "report": "one table and its plots from several runs",
}


def main() -> int:
    """Runs a verb. Returns 0 done, 1 failed, 2 wrong arguments, 3 stopped by a signal with the state saved."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m dinojax VERB ... (each with --help; --debug shows tracebacks)\n")
        print("\n".join(f"  {verb:<10} {line}" for verb, line in VERBS.items()))
        return 0 if arguments else 2
    verb = arguments[0]
    if verb not in VERBS:
        print(f"dinojax: there is no verb {verb!r}; choose from {', '.join(VERBS)}", file=sys.stderr)
        return 2
    try:
        importlib.import_module(f"dinojax.verbs.{verb}").main(arguments[1:])
    except RunError as error:
        if debug:
            raise
        print(f"dinojax {verb}: {error}", file=sys.stderr)
        return error.status
    except OSError as error:
        if debug:
            raise
        print(f"dinojax {verb}: {error}", file=sys.stderr)
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


if __name__ == "__main__":
    use_huge_pages()
    sys.exit(main())
