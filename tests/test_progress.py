"""Progress where output goes to a file: one line for every twentieth, with the time that is left."""

import pytest

from dinojax import progress


def test_lines_tell_the_time_left(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The first step of this process, here an hour of compiling, does not count; nor do those of an earlier one."""
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress.bar("pre-training", 40, completed=20) as bar:
        for done in range(21, 41):
            now += 3600 if done == 21 else 30
            bar(done, f"loss {done}.0")
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "pre-training 22/40, 9:00 left, loss 22.0"
    assert told[-2:] == ["pre-training 38/40, 1:00 left, loss 38.0", "pre-training 40/40, loss 40.0"]
    assert len(told) == 10


def test_work_of_one_step(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("features", 1) as bar:
        bar(1, "")
    assert capsys.readouterr().out == "features 1/1\n"


def test_a_duration_in_words() -> None:
    assert [progress.duration(seconds) for seconds in (4.6, 845, 11645)] == ["0:05", "14:05", "3:14:05"]
