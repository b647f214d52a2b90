"""`python -m weights_convert SRC DST`: a weight file of another project becomes a model directory."""

import argparse
import hashlib
import sys
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError

from dinojax.errors import RunError, UsageError
from dinojax.models import ARGUMENTS
from dinojax.models.features import imagenet_preprocessing
from dinojax.models.store import write_model
from weights_convert import readers
from weights_convert.layouts import Converted, recognise


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see python -m weights_convert --help")


def convert_file(source: Path, directory: Path, heads: int | None = None) -> Converted:
    """Writes the model in a weight file as a model directory, whole or not at all.

    Projection heads of a teacher checkpoint are kept beside the backbone (`dino_head.safetensors`);
    `pretrain` begins with a head of its own and does not read them.

    Args:
      source: a DINOv2 hub file or `teacher_checkpoint.pth`, or a `.safetensors` file with the same names.
      directory: where to; it must not exist, or be empty.
      heads: number of attention heads, for widths that do not tell.

    Raises:
      UsageError: the directory is taken, or `heads` is needed or wrong.
      RunError: the file is damaged, of another kind or of another model, or the directory cannot be written.
    """
    if directory.resolve() == Path.cwd():  # it would be replaced under the user's feet
        raise UsageError(f"{directory} is the current directory; name one to make")
    tensors = readers.read(source)
    try:
        converted = recognise(tensors, heads)
    except RunError as error:
        raise type(error)(f"{source}: {error}") from None
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    arguments = converted.arguments
    try:
        write_model(
            directory.resolve(),
            converted.name,
            arguments,
            converted.params,
            # DINOv2 is used at 224 pixels, though the hub's positional embeddings are those of 518.
            imagenet_preprocessing(arguments.channels, min(224, arguments.image_size)),
            source={"file": source.name, "sha256": digest, "layout": converted.layout},
            extra=converted.heads,
        )
    except (OSError, SafetensorError) as error:
        raise RunError(f"{directory}: cannot be written: {error}") from None
    return converted


def main(argv: list[str] | None = None) -> int:
    """Returns 0 done, 1 a file that cannot be converted, 2 wrong arguments."""
    parser = _Parser("python -m weights_convert", description=__doc__)
    parser.add_argument("source", type=Path, metavar="SRC", help="a DINOv2 .pth or .safetensors file")
    parser.add_argument("directory", type=Path, metavar="DST", help="the model directory to write")
    parser.add_argument("--heads", type=int, metavar="N", help="attention heads, where the width does not tell")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    debug = "--debug" in (sys.argv if argv is None else argv)
    try:
        options = parser.parse_args(argv)
        if options.heads is not None and options.heads < 1:
            parser.error(f"--heads must be 1 or more, not {options.heads}")
        converted = convert_file(options.source, options.directory, options.heads)
    except RunError as error:
        if debug:
            raise
        print(f"weights_convert: {error}", file=sys.stderr)
        return error.status
    print(_summary(options.source, options.directory, converted))
    return 0


def _summary(source: Path, directory: Path, converted: Converted) -> str:
    """What was found and what was written, a line each."""
    told = converted.arguments
    found = (
        f"{source}: layout {converted.layout}, {told.depth} blocks of width {told.width}, {told.heads} heads, "
        f"{told.registers} registers, positions for {told.image_size} pixels"
        + "".join(f", {h}" for h in converted.heads)
    )
    name = converted.name if told == ARGUMENTS[converted.name] else f"a variant of {converted.name}"
    parameters = sum(array.size for array in converted.params.values())
    megabytes = sum(path.stat().st_size for path in directory.iterdir()) / 1e6
    return (
        f"{found}\nwrote {directory}: {name}, {parameters:,} parameters, {megabytes:.1f} MB; "
        f'load it with dinojax.load_model("{directory}")'
    )


if __name__ == "__main__":
    sys.exit(main())
