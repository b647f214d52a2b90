"""`dinojax splits MANIFEST`: fold files that any number of runs share."""

import os
from pathlib import Path

from dinojax.config.splits import SplitsConfig
from dinojax.data.duplicates import LIMIT, find_twins
from dinojax.data.facts import data_facts, render
from dinojax.data.fold_files import fold_tables, write_fold_files
from dinojax.data.opening import open_images
from dinojax.data.reading import read_labelled
from dinojax.data.splits import cases_table, describe_folds, make_folds
from dinojax.errors import UsageError


def main(config: SplitsConfig) -> Path:
    """Divides a data set, whatever parts it brings along, and writes the fold files."""
    out = Path(config.out)
    if fold_tables(out):
        raise UsageError(f"{out / 'dataframe'} holds tables already; remove them, or name another --out")
    # Folds have no positive class; each run names its own.
    records = read_labelled(config.data, config, positive_needed=False)
    if records.folds or records.splits is not None:
        print("the parts or folds that the data brings along are not kept: all images are divided anew")
    records = records.undivided()
    records, headers = open_images(records, config)
    twins = find_twins(records, config.threads) if len(records) <= LIMIT else None
    drawn = (config.folds, config.fold_seed, None if twins is None else twins.first)
    folds = make_folds(records, *drawn)
    print(render(data_facts(records, headers, folds, describe_folds(records, *drawn), twins)))
    if config.check:
        return out
    table = cases_table(records, slice(None))
    if records.files is None:
        for name, channel in zip(records.channel_columns or ["path"], records.channels, strict=False):
            table[name] = [Path(os.path.relpath(records.root / path, out)).as_posix() for path in channel.paths]
        table = table.drop(columns="path") if records.channel_columns else table
    else:
        table = table.rename(columns={"path": "pseudonym"})
    empty = [name for name in ("frame", "patient_id") if set(table[name]) == {""}]
    write_fold_files(out, records.task, table.drop(columns=empty), folds)
    print(f"done: {3 * len(folds)} tables in {out / 'dataframe'}; give every run --data {out}")
    return out
