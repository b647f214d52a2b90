"""What the report of an audit says: its tables and sentences, and its last line."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dinojax.reporting.render import Block, Heading, Picture, Table

_KINDS = {
    "file": "equal files",
    "pixels": "identical pixels",
    "near": "near duplicates",
    "patient": "shared patients",
}
_ROWS = 40
READING = (
    "Equal files are the same byte for byte; identical pixels are the same image in another file or format, a grey one "
    "and an RGB one with three equal channels included. Near duplicates are found by a perceptual hash and by the "
    "correlation of small grey copies: the same image rescaled, recompressed or with another contrast, and often "
    "neighbouring slices or frames of one patient; look at them before anything is left out. A mirrored, turned or "
    "cropped copy is not found. Images that show next to nothing (flat) are compared by their pixels alone."
)
PLACES = (
    "Across parts: the two stand in different parts of a fold, so that a model is tested, or selected, on what it was "
    "trained on. Within: in one data set, and not across its parts. Corpus and test: an image of a corpus that models "
    "are pre-trained on, and one that is tested on (any image of a data set without parts); corpus: one that is not."
)


def compose(
    summary: Mapping[str, Any],
    table: pd.DataFrame,
    how: str,
    pictures: Mapping[str, Sequence[Picture]],
    notes: Mapping[str, str],
) -> list[Block]:
    """The report of an audit.

    Args:
      summary: what `audit.json` says.
      table: what `audit.csv` says.
      how: thresholds, in words.
      pictures: of each kind.
      notes: of each kind, what its pictures leave out; may be empty.
    """
    blocks: list[Block] = [Heading(1, "Duplicates and shared patients"), f"{conclusion(summary)}.", _sets(summary)]
    if len(table):
        rows = [[where, *(str(counts[kind]) for kind in _KINDS)] for where, counts in summary["pairs"].items()]
        blocks += [Heading(2, "Pairs found"), Table(["where", *_KINDS.values()], rows), PLACES]
    if summary["leaks"]:
        head = ["data set", "fold", "test images", "of these identical to one of another part", "nearly so"]
        rows = [[str(leak[key]) for key in ("data", "fold", "test", "identical", "near")] for leak in summary["leaks"]]
        blocks += [Heading(2, "Test images with a twin in the same fold"), Table(head, rows)]
    if summary["corpus"]:
        head = ["data set", "images that may be tested on", "of these identical to one of a corpus", "nearly so"]
        rows = [[str(found[key]) for key in ("data", "test", "identical", "near")] for found in summary["corpus"]]
        blocks += [Heading(2, "Test images in a corpus"), Table(head, rows)]
    for kind, name in _KINDS.items():
        found = pd.DataFrame(table[table["kind"] == kind])
        if len(found):
            blocks += [Heading(2, name.capitalize()), *pictures.get(kind, ()), *filter(None, [notes.get(kind)])]
            blocks.append(_pairs(kind, found))
            if len(found) > _ROWS:
                blocks.append(f"And {len(found) - _ROWS:,} more in audit.csv.")
    return [*blocks, Heading(2, "How to read it"), READING, how]


def conclusion(summary: Mapping[str, Any]) -> str:
    """One sentence: how many pairs of each kind, and what spoils a test."""
    totals = {kind: sum(counts[kind] for counts in summary["pairs"].values()) for kind in _KINDS}
    parts = [f"{number:,} of {_KINDS[kind]}" for kind, number in totals.items() if number]
    known = any(one["patients"] is not None for one in summary["data"])
    none = "No duplicates and no shared patients found" if known else "No duplicates found"
    text = f"Pairs found: {', '.join(parts)}" if parts else none
    if not known:
        text += "; patients are unknown (--group_regex takes them from the paths)"
    if contrary := summary["labels_differ"]:
        text += f"; identical pairs whose labels differ: {contrary:,}"
    if leaks := [leak for leak in summary["leaks"] if leak["identical"] or leak["near"]]:
        worst = max(leaks, key=lambda leak: (leak["identical"], leak["near"]))
        where = f"fold {worst['fold']} of {worst['data']}" + (" (of the folds, most)" if len(leaks) > 1 else "")
        text += (
            f"; {worst['identical']} of {worst['test']} test images of {where} equal an image of another part, "
            f"{worst['near']} more nearly so"
        )
    for found in summary["corpus"]:
        if found["identical"] or found["near"]:
            text += (
                f"; {found['identical']} of {found['test']} test images of {found['data']} are in a corpus, "
                f"{found['near']} more nearly so"
            )
    return text


def _sets(summary: Mapping[str, Any]) -> Table:
    rows = [
        [
            *(one["name"], "corpus" if one["corpus"] else "data set", str(one["images"]), str(one["folds"] or "none")),
            "unknown (--group_regex)" if one["patients"] is None else f"{one['patients']:,}",
            *(str(one["unreadable"]), str(one["flat"])),
        ]
        for one in summary["data"]
    ]
    return Table(["read", "as", "images", "folds", "patients", "unreadable (skipped_files.csv)", "flat"], rows)


def _pairs(kind: str, found: pd.DataFrame) -> Table:
    header = ["where", *(["distance", "correlation"] if kind == "near" else []), "image", "other image", "labels"]
    rows = []
    for row in found.head(_ROWS).to_dict("records"):
        labels = " / ".join(dict.fromkeys(filter(None, (row["label_a"], row["label_b"]))))
        cells = [str(row["where"]) + (f" (folds {row['folds']})" if row["folds"] else "")]
        if kind == "near":
            cells += [str(row["distance"]), f"{row['correlation']:.3f}"]
        if kind == "patient":
            cells[0] += f": {row['patient_id']}"
        rows.append([*cells, image_name(row, "a"), image_name(row, "b"), labels])
    return Table(header, rows)


def image_name(row: Mapping[Any, Any], side: str) -> str:
    """An image of a pair in words: data set where the two differ, path, frame, part."""
    name = row[f"path_{side}"] if row["data_a"] == row["data_b"] else f"{row[f'data_{side}']}: {row[f'path_{side}']}"
    frame, part = row[f"frame_{side}"], row[f"part_{side}"]
    return f"{name}{'' if frame == '' else f' frame {frame}'}{f' ({part})' if part else ''}"
