"""Any text in a figure: in letters that some font here has, and in lines that fit."""

import contextlib
import functools
import re
from collections.abc import Iterator

import matplotlib
from matplotlib import font_manager
from matplotlib.backends.backend_agg import RendererAgg

# The first comes with matplotlib; of the others those that are installed lend the letters that it lacks.
_FAMILIES = (
    *("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "WenQuanYi Zen Hei"),
    *("Microsoft YaHei", "SimHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Arial Unicode MS"),
)
DPI = 140
MISSING = "□"
"""Stands for a letter that no font has."""


@contextlib.contextmanager
def plain_text() -> Iterator[None]:
    """Figures made inside take text as it is (`$` is no formula), in all fonts that there are."""
    with matplotlib.rc_context({"text.parse_math": False, "font.family": list(_fonts())}):
        yield


@functools.cache
def _fonts() -> dict[str, font_manager.FontPath | str]:
    installed = set(font_manager.get_font_names())
    return {name: font_manager.findfont(name) for name in _FAMILIES if name in installed}


@functools.cache
def _has(letter: str) -> bool:
    return any(font_manager.get_font(path).get_char_index(ord(letter)) for path in _fonts().values())


def drawable(text: str) -> str:
    """The text on one line, with `MISSING` for every letter that no font has."""
    return "".join(letter if _has(letter) else MISSING for letter in re.sub(r"[^\S\xa0]+", " ", text))


def wrapped(text: str, inches: float, size: float, most: int = 4) -> str:
    """The text in lines of a width, broken behind spaces, hyphens, slashes and underscores, else anywhere.

    Args:
      text: of any length.
      inches: the width.
      size: of the font, in points.
      most: number of lines; of a longer text the beginning and the end are kept.
    """
    lines = _lines(drawable(text), inches, size)
    if len(lines) <= most:
        return "\n".join(lines)
    end = " ".join(lines[most - 1 :])
    while not _fits(f"…{end}", inches, size):
        end = end[1:]
    return "\n".join([*lines[: most - 1], f"…{end}"])


def _lines(text: str, inches: float, size: float) -> list[str]:
    lines = [""]
    for word in re.split(r"(?<=[ _/-])", text):
        if not _fits(lines[-1] + word.rstrip(" "), inches, size) and lines[-1]:
            lines.append("")
        while not _fits(word.rstrip(" "), inches, size):  # longer than a line by itself
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or _fits(word[:n], inches, size))
            lines[-1:], word = [word[:cut], ""], word[cut:]
        lines[-1] += word
    return [line.rstrip(" ") for line in lines]


def _fits(text: str, inches: float, size: float) -> bool:
    # Letters are rounded to pixels, so the width is that at the resolution at which the figure is written.
    font = font_manager.FontProperties(family=list(_fonts()), size=size)
    return RendererAgg(1, 1, DPI).get_text_width_height_descent(text, font, ismath=False)[0] <= DPI * inches
