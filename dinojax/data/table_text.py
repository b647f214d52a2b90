"""Text files as rows of cells: encodings and separators as spreadsheets and Windows write them."""

import codecs
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from dinojax.errors import RunError

SUFFIXES = (".csv", ".tsv", ".txt")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars", " ": "spaces"}
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_BLOCK = 1 << 20


class Text(NamedTuple):
    """How a table is written."""

    file: Path
    encoding: str
    separator: str

    def __str__(self) -> str:
        """What is not as in most tables, for people to read; '' if nothing is."""
        encoding = {"utf-16": "UTF-16", "cp1252": "cp1252, as it is not UTF-8"}.get(self.encoding, "")
        separator = "" if self.separator == "," else f"separated by {SEPARATORS[self.separator]}"
        return "; ".join(part for part in (separator, encoding) if part)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """Number and stripped cells of every line that is not blank, the header first.

        Raises:
          RunError: the file cannot be read as CSV.
        """
        try:
            with self.file.open(encoding=self.encoding, newline="") as opened:
                reader = csv.reader(opened, delimiter=self.separator, skipinitialspace=self.separator == " ")
                for values in reader:
                    stripped = [value.strip() for value in values]
                    if any(stripped) and (reader.line_num > 1 or not _is_excels(stripped)):
                        yield reader.line_num, stripped
        except (OSError, UnicodeError, csv.Error) as error:
            raise RunError(f"{self.file}: not readable as CSV in {self.encoding.upper()}: {error}") from error


def _is_excels(cells: Sequence[str]) -> bool:
    """Whether a line is `sep=;`, which tells Excel the separator."""
    return len(cells[0]) <= len("sep=;") and cells[0].startswith("sep=") and not any(cells[1:])


def encoding_of(file: Path) -> str:
    """UTF-8, UTF-16 with its mark, or cp1252, which Windows writes in the West.

    Raises:
      RunError: it is none of them, or cannot be read.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    encoding = "utf-8"
    try:
        with file.open("rb") as opened:
            head = opened.read(_BLOCK)
            for mark, name in _MARKS.items():
                if head.startswith(mark):
                    return name
            if b"\0" in head:
                raise RunError(f"{file}: holds null bytes, so it is no text in UTF-8; save it as CSV in UTF-8")
            opened.seek(0)
            while block := opened.read(_BLOCK):
                if encoding == "cp1252":
                    block.decode(encoding)
                    continue
                try:
                    decoder.decode(block)
                except UnicodeDecodeError:
                    encoding = "cp1252"
                    (head + block).decode(encoding)
            if encoding == "utf-8":
                decoder.decode(b"", final=True)
    except OSError as error:
        raise RunError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RunError(f"{file}: is neither UTF-8 nor cp1252 ({error.reason}); save it as UTF-8") from error
    return encoding


def headers(file: Path) -> list[tuple[Text, list[str]]]:
    """The first line, cut at each of the separators.

    Raises:
      RunError: as `encoding_of`; the file is empty.
    """
    encoding = encoding_of(file)
    texts = [Text(file, encoding, separator) for separator in SEPARATORS]
    found = [(text, next(text.rows(), (0, []))[1]) for text in texts]
    if not found[0][1]:
        raise RunError(f"{file}: is empty")
    return found
