"""`python -m dinojax`: exit statuses and one-line messages, as a shell sees them."""

import io
import subprocess
import sys
from pathlib import Path

import pytest

from dinojax.__main__ import main


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "dinojax", *arguments], capture_output=True, text=True, check=False)


def test_help_lists_the_verbs() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "pretrain" in shown.stdout
    assert run().returncode == 2
    assert "--optim.lr" in run("pretrain", "--help").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["pretain"], 2, "pretain"),
        (["pretrain", "--data", "nowhere", "--out", "run"], 2, "nowhere"),
        (["finetune", "--data", "nowhere", "--out", "run"], 2, "nowhere"),
        (["pretrain", "--data", "."], 2, "out"),
        (["report", "nowhere", "--out", "report"], 2, "nowhere"),
    ],
)
def test_mistakes_end_with_one_line_and_a_status(
    arguments: list[str], status: int, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.returncode == status, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("dinojax")
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback() -> None:
    done = run("pretrain", "--data", "nowhere", "--out", "run", "--debug")
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")])
def test_too_little_memory_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr("dinojax.__main__.run", fail)
    monkeypatch.setattr("sys.argv", ["dinojax", "pretrain"])
    assert main() == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "lower batch_size" in told


def test_what_a_terminal_cannot_write_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("sys.argv", ["dinojax", "pretrain"])
    monkeypatch.setattr("dinojax.__main__.run", lambda arguments: print("28×28 b\udcf6se.png"))
    assert main() == 0
    sys.stdout.flush()
    assert written.getvalue() == b"28\\xd728 b\\udcf6se.png\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "runs/x.csv"), "No space left on device: runs/x.csv"),
        (OSError(28, "No space left on device"), "No space left on device; is the disk full"),
    ],
)
def test_a_full_disk_is_one_line(
    error: OSError, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setattr("dinojax.__main__.run", fail)
    monkeypatch.setattr("sys.argv", ["dinojax", "pretrain"])
    assert main() == 1
    assert f"dinojax pretrain: {line}" in capsys.readouterr().err
