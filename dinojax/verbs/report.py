"""`python -m dinojax report`: one table and its plots from several runs of `finetune`."""

from pathlib import Path

import pandas as pd

from dinojax.config.parser import Parser
from dinojax.errors import UsageError
from dinojax.report import comparison, render
from dinojax.report.results import check_comparable, read_run
from dinojax.runs.files import replacing, write_json, write_text


def main(arguments: list[str]) -> None:
    """Reads the runs, computes every number anew from their predictions, and writes the report."""
    parser = Parser(prog="python -m dinojax report", description="One table and its plots from runs of finetune.")
    parser.add_argument("runs", nargs="+", help="directories of finished runs of finetune")
    parser.add_argument("--out", required=True, help="directory of the report; files of an earlier one are replaced")
    given = parser.parse_args(arguments)
    out = Path(given.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; name a directory")
    runs = [read_run(Path(name)) for name in given.runs]
    check_comparable(runs)

    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    rows = comparison.rows_of(runs)
    blocks = comparison.compose(runs, comparison.draw(runs, figures))
    write_text(out / "report.md", render.to_markdown(blocks, out))
    write_text(out / "report.html", render.to_html(blocks))
    # Whole numbers stay whole beside the baselines' empty cells.
    table = pd.DataFrame([comparison.flat(row) for row in rows]).convert_dtypes()
    with replacing(out / "table.csv", newline="") as file:
        table.to_csv(file, index=False)
    described = [{"directory": str(run.directory), **run.facts} for run in runs]
    write_json(out / "report.json", {"table": rows, "notes": comparison.READING, "runs": described})
    print(f"done: {out / 'report.md'}, and report.html beside it")
