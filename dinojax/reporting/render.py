"""A document of headings, text, tables and figures, as Markdown and as one HTML file that needs no other."""

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Heading(NamedTuple):
    """A heading; the first one of a document is its title."""

    level: int
    text: str


class Table(NamedTuple):
    """A table of cells that are text already."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A PNG file with what it shows."""

    path: Path
    caption: str


Block = Heading | str | Table | Picture
"""A string is a paragraph."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 63rem; margin: 2rem auto; padding: 0 1rem; }
h1, h2, h3 { line-height: 1.2; margin-top: 2rem; }
h1, h2, h3, p, figcaption { overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; }
td:not(.number):not(:empty) { min-width: 5em; }
th { border-bottom: 2px solid #888; min-width: 2.5rem; overflow-wrap: break-word; }
.number { white-space: nowrap; overflow-wrap: normal; }
figure { margin: 1.5rem 0; }
img { max-width: 100%; }
figcaption { color: #555; font-size: .9em; }
@media print {
  @page { size: A4; margin: 15mm; }
  body { font-size: 10pt; max-width: none; margin: 0; padding: 0; }
  .wide { overflow-x: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .15rem .3rem; }
  th { min-width: 0; }
  tr, figure { break-inside: avoid; }
  h1, h2, h3 { break-after: avoid; }
  img { max-height: 235mm; }
}
"""
_NUMBER = re.compile(r"[+−-]?[\d.]+(e[+-]?\d+)?( ± [\d.]+| \(one fold\))?")


def number(value: float | None, digits: int = 3) -> str:
    """A number as text, `none` where it is not defined."""
    return "none" if value is None else f"{value:.{digits}f}"


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Markdown, pictures linked relative to `folder`."""
    return "\n\n".join(_markdown(block, folder) for block in blocks) + "\n"


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Heading):
        return f"{'#' * block.level} {block.text}"
    if isinstance(block, str):
        return block
    if isinstance(block, Picture):
        return f"![{block.caption}]({block.path.relative_to(folder).as_posix()})\n\n*{block.caption}*"
    rows = [block.header, ["---"] * len(block.header), *block.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def to_html(blocks: Sequence[Block]) -> str:
    """One HTML page; pictures are part of it."""
    title = next((block.text for block in blocks if isinstance(block, Heading)), "Report")
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(_html(block) for block in blocks)
    return f'<!doctype html>\n<html lang="en">\n<head>{head}</head>\n<body>\n{body}\n</body>\n</html>\n'


def _html(block: Block) -> str:
    if isinstance(block, Heading):
        return f"<h{block.level}>{html.escape(block.text)}</h{block.level}>"
    if isinstance(block, str):
        return f"<p>{html.escape(block)}</p>"
    if isinstance(block, Picture):
        data = base64.b64encode(block.path.read_bytes()).decode()
        caption = html.escape(block.caption)
        image = f'<img src="data:image/png;base64,{data}" alt="{caption}">'
        return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
    rows = ["".join(map(_cell, row)) for row in block.rows]
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<thead><tr>{header}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _cell(text: str) -> str:
    """A cell; numbers are not broken over lines."""
    kind = ' class="number"' if _NUMBER.fullmatch(text) else ""
    return f"<td{kind}>{html.escape(text)}</td>"
