"""`dinojax report`: one table and its plots from several runs, of whatever protocols."""

from pathlib import Path

import pandas as pd

from dinojax.config.report import ReportConfig
from dinojax.errors import UsageError
from dinojax.reporting import comparison, render
from dinojax.reporting.figures import draw_comparison
from dinojax.reporting.results import check_comparable, read_run, renamed
from dinojax.runs.files import write_json, write_text


def main(config: ReportConfig) -> Path:
    """Reads the runs, computes every number anew from their predictions, and writes the report."""
    out = Path(config.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a directory")
    runs = renamed([read_run(Path(name)) for name in config.runs], config.names)
    check_comparable(runs)

    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    rows = comparison.rows_of(runs)
    blocks = comparison.compose(runs, draw_comparison(runs, figures))
    write_text(out / "report.md", render.to_markdown(blocks, out))
    write_text(out / "report.html", render.to_html(blocks))
    # Whole numbers stay whole beside the baselines' empty cells.
    table = pd.DataFrame([comparison.flat(row) for row in rows]).convert_dtypes()
    write_text(out / "table.csv", table.to_csv(index=False))
    sources = [{"directory": str(run.directory), **run.facts} for run in runs]
    write_json(out / "report.json", {"table": rows, "notes": comparison.READING, "runs": sources})
    print(f"done: {out / 'report.md'}, and report.html beside it")
    return out
