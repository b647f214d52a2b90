"""`python -m weights_convert SRC DST`: weight files of other projects become model directories, and back."""

import argparse
import io
import math
import os
import signal
import sys
from pathlib import Path
from typing import Literal, NoReturn

from dinojax.errors import RunError, UsageError
from dinojax.models.arrays import write_arrays
from dinojax.models.store import read_description, write_model
from dinojax.runs.files import write_json
from weights_convert import inspection, readers, writers
from weights_convert.backbones import Converted
from weights_convert.layouts import linear_head_fits, projection_head_fits, recognise_source


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see python -m weights_convert --help")


def convert_file(
    source: Path, directory: Path, heads: int | None = None, part: Literal["teacher", "student"] = "teacher"
) -> Converted:
    """Writes the model in a weight file as a model directory, whole or not at all.

    Projection heads of a training checkpoint are kept beside the backbone (`dino_head.safetensors`), so that
    pre-training can continue with them. A published linear or projection head by itself is written into the model
    directory of its backbone, which must exist.

    Args:
      source: a file or Hugging Face folder, of any kind that `readers.read_file` reads.
      directory: where to; it must not exist, or be empty; of a head by itself, a model directory.
      heads: number of attention heads, for widths that no published model has.
      part: which model of a training checkpoint to take.

    Raises:
      UsageError: the directory is taken or wrong, or `heads` is needed or wrong.
      RunError: the file is damaged, of another kind or of another model, or the directory cannot be written.
    """
    owner = source.parent if source.name in ("model.json", "params.safetensors") else source
    if (owner / "model.json").is_file():
        raise UsageError(
            f"{owner} is a model directory already; --to {'|'.join(writers.LAYOUTS)} takes it back, --inspect looks"
        )
    read = readers.read_file(source)
    try:
        converted = recognise_source(read, heads, part)
        origin = {"file": source.resolve().name if source.is_dir() else source.name}
        origin |= {"sha256": read.sha256(), "layout": converted.layout}
        if converted.arguments is None:
            if heads is not None:
                raise UsageError("is a head by itself, which has no attention; leave out --heads")
            _write_head(converted, origin, directory)
            return converted
    except RunError as error:
        raise type(error)(f"{source}: {error}") from None
    if converted.layout.endswith(("_teacher", "_student")):
        origin["part"] = part
    if directory.resolve() == Path.cwd():  # it would be replaced while the user is in it
        raise UsageError(f"{directory} is the current directory; name one to make")
    write_model(
        directory,
        converted.name,
        converted.arguments,
        converted.params,
        converted.preprocessing,
        source=origin,
        extra=converted.heads,
    )
    return converted


def _write_head(converted: Converted, origin: dict[str, str], directory: Path) -> None:
    """Puts a head beside its backbone: `linear_head.safetensors`, for example, named in `model.json`."""
    ((name, head),) = converted.heads.items()
    what = "linear head" if name == "linear_head" else "projection head"
    if not (directory / "model.json").is_file():
        raise UsageError(f"is a {what}; name the model directory of its backbone, which {directory} is not")
    description = read_description(directory)
    if "classifier" in description:
        raise UsageError(f"is a {what} of a pre-trained backbone; {directory} is a fine-tuned classifier")
    try:
        width, depth = (description["arguments"][key] for key in ("width", "depth"))
    except (KeyError, TypeError):
        raise RunError(f"fits no model in {directory}, which is not a vision transformer") from None
    facts: dict[str, int] = {}
    if name == "linear_head":
        facts["blocks"] = linear_head_fits(converted, width, depth)
    else:
        projection_head_fits(head, width)
    path = directory / f"{name}.safetensors"
    if path.exists():
        raise UsageError(f"{path} exists already; remove it to put in another")
    description[name] = {**origin, **facts}
    write_arrays(path, head)
    try:
        write_json(directory / "model.json", description)
    except BaseException:
        path.unlink()
        raise


def _told_of_head(converted: Converted, directory: Path) -> list[str]:
    """What to print of a head that was put beside its backbone; of a projection head, how pre-training takes it up."""
    ((name, head),) = converted.heads.items()
    lines = [f"wrote {directory / f'{name}.safetensors'}"]
    if name != "linear_head":
        section = "head" if name == "dino_head" else name
        layers = sum(path.endswith(".kernel") for path in head.shapes)
        hidden, (bottleneck, prototypes) = head.shapes["mlp.0.kernel"][1], head.shapes["last_layer.weight_v"]
        form = {"prototypes": prototypes, "hidden": hidden, "bottleneck": bottleneck, "layers": layers}
        given = " ".join(f"--{section}.{key} {value}" for key, value in form.items())
        lines.append(f"pre-training continues it with --init {directory} {given}")
    return lines


def main(argv: list[str] | None = None) -> int:
    """Returns 0 done, 1 a file that cannot be converted, 2 wrong arguments."""
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        lines = _run(_parsed([argument for argument in arguments if argument != "--debug"]))
        print("\n".join(lines), flush=True)
    except RunError as error:
        if debug:
            raise
        print(f"weights_convert: {error}", file=sys.stderr)
        return error.status
    except BrokenPipeError:  # `| head` has read enough; nothing may be written at the end either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, MemoryError, KeyboardInterrupt) as error:
        if debug:
            raise
        said = {MemoryError: "out of memory", KeyboardInterrupt: "interrupted; nothing was written"}
        print(f"weights_convert: {said.get(type(error), error)}", file=sys.stderr)
        return 1
    return 0


def _parsed(arguments: list[str]) -> argparse.Namespace:
    parser = _Parser(
        "python -m weights_convert", description=__doc__, epilog="--debug shows tracebacks.", allow_abbrev=False
    )
    parser.add_argument(
        "source", type=Path, metavar="SRC", help=".pth, .pt, .bin, .safetensors or .h5 file, or Hugging Face folder"
    )
    parser.add_argument("destination", type=Path, metavar="DST", nargs="?", help="the model directory to write")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads, for a width of no published model")
    parser.add_argument(
        "--part", choices=("teacher", "student"), help="which model of a training checkpoint to take (teacher)"
    )
    parser.add_argument("--to", choices=writers.LAYOUTS, help="the way back: SRC is a model directory")
    parser.add_argument("--inspect", action="store_true", help="only describe SRC and list its tensors")
    options = parser.parse_args(arguments)
    if options.heads is not None and options.heads < 1:
        parser.error(f"--heads must be 1 or more, not {options.heads}")
    if options.inspect and (options.destination or options.to):
        parser.error("--inspect takes one file and writes nothing; leave out DST and --to")
    if not options.inspect and options.destination is None:
        parser.error("the following arguments are required: DST")
    if options.to and (options.heads or options.part):
        parser.error("--to takes a model directory as it is; leave out --heads and --part")
    return options


def _run(options: argparse.Namespace) -> list[str]:
    """Does what the options ask for, and returns what to print, a line each."""
    source, destination, part = options.source, options.destination, options.part or "teacher"
    if options.inspect:
        if (source / "model.json").is_file():
            return [inspection.inspect_directory(source)]
        return [inspection.inspect_file(source, options.heads, part)]
    if options.to:
        lost = writers.write(source, options.to, destination)
        return [*lost, f"wrote {destination} in the layout {options.to}"]
    converted = convert_file(source, destination, options.heads, part)
    found = [f"{source}: layout {converted.layout}", *inspection.describe(converted)[1:]]
    if converted.arguments is None:
        return [*found, *_told_of_head(converted, destination)]
    sizes = {path: math.prod(shape) for path, shape in converted.params.shapes.items()}
    statistics = sum(size for path, size in sizes.items() if path.endswith((".mean", ".var")))
    counted = f"{sum(sizes.values()) - statistics:,} parameters"
    if statistics:
        counted += f" and {statistics:,} running means and variances"
    megabytes = sum(path.stat().st_size for path in destination.iterdir()) / 1e6
    name = inspection.model_name(converted.name, converted.arguments)
    return [
        *found,
        f'wrote {destination}: {name}, {counted}, {megabytes:.1f} MB; load it with dinojax.load_model("{destination}")',
    ]


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves nothing behind, as Ctrl-C
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # where the terminal has no ×
    sys.exit(main())
