"""`metrics.jsonl`: what a resumed run keeps of it, and damaged lines."""

from pathlib import Path

import pytest

from dinojax.errors import RunError
from dinojax.runs.metrics import MetricsLog, read_metrics


def write_log(path: Path, restored: int | None, *steps: int) -> None:
    with MetricsLog(path, restored) as log:
        for step in steps:
            log.write(step, {"loss": 1 / 3}, {"seconds": 0.5})


def test_metrics_resume_after_the_restored_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    write_log(path, None, 0, 1, 2, 3)
    with path.open("a") as file:
        file.write('{"step": 4, "lo')
    whole = path.read_text().splitlines(keepends=True)
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 3]
    write_log(path, 2, 3)
    assert path.read_text().splitlines(keepends=True) == whole[:4]
    assert read_metrics(path)[-1] == {"step": 3, "loss": 1 / 3, "time": {"seconds": 0.5}}
    write_log(path, 0)
    assert [line["step"] for line in read_metrics(path)] == [0]
    write_log(path, None)
    assert path.read_text() == ""
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("line", ["{", "[]", "3", "{}", '{"step": null}', "\x00\x00", ""])
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RunError, match=r"line 2 of .*metrics\.jsonl is damaged.*remove it") as caught:
        MetricsLog(path, 3)
    assert "\n" not in str(caught.value)
    assert path.read_text().count("\n") == 3
