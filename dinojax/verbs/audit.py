"""`dinojax audit`: images that data sets hold twice, and patients that their parts share."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dinojax import progress
from dinojax.config.audit import AuditConfig
from dinojax.data.audit import KINDS, Audit, read_audited
from dinojax.data.audit_summary import summary
from dinojax.data.fingerprints import Fingerprints, fingerprint, read_pixels
from dinojax.data.formats import BadFile
from dinojax.data.headers import list_skipped
from dinojax.errors import RunError, UsageError
from dinojax.look.pairs import Pair, pair_sheet
from dinojax.reporting import audit as reporting
from dinojax.reporting import render
from dinojax.runs.files import write_json, write_text

_A_SHEET = 24  # pairs


def main(config: AuditConfig) -> Path:
    """Compares the data sets, and writes the report. What it finds is no failure."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a directory")
    sets = [read_audited(data, config, corpus=False) for data in config.data]
    sets += [read_audited(data, config, corpus=True) for data in config.corpus]
    found: list[Fingerprints] = []
    with progress.bar("hashing", sum(len(one.records) for one in sets)) as bar:
        before = 0
        for one in sets:
            found.append(fingerprint(one.records, config.threads, on_progress=lambda n, done=before: bar(done + n, "")))
            before += len(one.records)
            if len(found[-1].unreadable) == len(one.records):
                raise RunError(f"{one.name}: none of the {len(one.records)} images can be read")
    audit = Audit(sets, found)
    pairs = audit.pairs(config.near, config.near_distance, config.near_correlation, config.same_patients)
    table = audit.table(pairs)
    told = summary(audit, pairs, table)

    (out / "figures").mkdir(parents=True, exist_ok=True)
    for earlier in (*(out / "figures").glob("*.png"), out / "skipped_files.csv"):
        earlier.unlink(missing_ok=True)
    drawn, notes = {}, {}
    for kind in KINDS:
        rows = pd.DataFrame(table[table["kind"] == kind])
        drawn[kind] = draw(audit, rows.head(config.pictures), kind, out / "figures")
        if drawn[kind] and len(rows) > config.pictures:
            notes[kind] = f"{config.pictures} of {len(rows):,} pairs are drawn; the others stand in audit.csv."
    how = f"Near duplicates differ in {config.near_distance} of 63 bits at most, with correlations of at least "
    how = f"{how}{config.near_correlation:g}." if config.near else "Near duplicates were not looked for."
    blocks = reporting.compose(told, table, how, drawn, notes)
    write_text(out / "audit.md", render.to_markdown(blocks, out))
    write_text(out / "audit.html", render.to_html(blocks))
    write_text(out / "audit.csv", table.drop(columns=["a", "b"]).to_csv(index=False))
    thresholds = {"near": config.near, "distance": config.near_distance, "correlation": config.near_correlation}
    write_json(out / "audit.json", {**told, "thresholds": thresholds, "same_patients": config.same_patients})
    bad = [entry for one in sets for entry in one.bad]
    for one, fingerprints in zip(sets, found, strict=True):
        bad += [(str(one.records.paths[place]), why) for place, why in fingerprints.unreadable.items()]
    list_skipped(bad, out / "skipped_files.csv")
    print(f"done: {reporting.conclusion(told)}; see {out / 'audit.html'} and audit.csv beside it")
    return out


def draw(audit: Audit, rows: pd.DataFrame, kind: str, folder: Path) -> Sequence[render.Picture]:
    """Draws pairs side by side, so many to a sheet."""
    pictures = []
    for first in range(0, len(rows), _A_SHEET):
        shown = []
        for row in rows.iloc[first : first + _A_SHEET].to_dict("records"):
            sides = [(audit.sets[audit.of[row[side]]].records, int(audit.place[row[side]])) for side in ("a", "b")]
            try:
                a, b = (read_pixels(*side) for side in sides)
            except BadFile:  # it was read a moment ago, or belongs to a shared patient and never was
                continue
            alike = f", {row['distance']} bits, r {row['correlation']:.3f}" if kind == "near" else ""
            contrary = ", labels differ" if row["labels_differ"] == "true" and kind != "patient" else ""
            names = (reporting.image_name(row, "a"), reporting.image_name(row, "b"))
            shown.append(Pair((a, b), names, f"{row['where']}{alike}{contrary}"))
        if shown:
            path = folder / f"{kind}_{first // _A_SHEET + 1}.png"
            pair_sheet(shown, f"{kind}: pairs {first + 1} to {first + len(shown)}", path)
            pictures.append(render.Picture(path, f"Pairs of kind '{kind}', {first + 1} to {first + len(shown)}"))
    return pictures
