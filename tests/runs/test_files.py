"""Files and directories are written whole or not at all, and damage to them is named."""

import errno
import json
import os
import resource
from pathlib import Path

import pytest

from dinojax.errors import RunError, UsageError
from dinojax.runs import files
from dinojax.runs.files import read_json, replacing, replacing_directory, write_json, write_text


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(RunError, match=rf"cannot write .*new/a\.txt: {os.strerror(errno.EFBIG)}$"):
            write_text(tmp_path / "new" / "a.txt", "x" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "new" / "a.txt").read_text() == "before"
    assert names(tmp_path / "new") == ["a.txt"]


def test_a_block_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text in ("é\r\n", "é\n"):
        with replacing(path, newline="") as file:
            file.write(text)
        assert path.read_bytes() == text.encode()

    def fail(error: BaseException) -> None:
        with replacing(path, "wb") as file:
            file.write(b"half")
            assert path.read_text() == "é\n"
            raise error

    for error in (ZeroDivisionError(), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            fail(error)
    assert path.read_text() == "é\n"
    assert names(tmp_path) == ["a.csv"]


def test_what_is_renamed_is_on_the_disk_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    replace, fsync = Path.replace, os.fsync

    def sync(descriptor: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().suffix or 'folder'}")
        fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        events.append(f"rename with {self.stat().st_size} bytes")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    write_text(tmp_path / "a.txt", "abc")
    assert events == ["sync .partial", "rename with 3 bytes", "sync folder"]


def test_a_directory_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"

    def write(text: str, overwrite: bool = False) -> None:
        with replacing_directory(path, overwrite) as partial:
            write_text(partial / "a.txt", text)
            if text == "bad":
                (partial / "b").mkdir()
                write_text(partial / "b", text)

    with pytest.raises(RunError, match=rf"^cannot write {path}/b: Is a directory$"):
        write("bad")
    assert names(path.parent) == []
    write("first")
    with pytest.raises(UsageError, match=rf"{path} exists already"):
        write("second")
    with pytest.raises(RunError, match=rf"^cannot write {path}/b: Is a directory$"):
        write("bad", overwrite=True)
    assert (path / "a.txt").read_text() == "first"
    write("second", overwrite=True)
    assert (path / "a.txt").read_text() == "second"
    assert (names(path.parent), names(path)) == (["model"], ["a.txt"])
    (tmp_path / "empty").mkdir()
    with replacing_directory(tmp_path / "empty") as partial:
        write_text(partial / "a.txt", "")
    assert names(tmp_path / "empty") == ["a.txt"]


def test_a_directory_takes_no_file_s_place_and_none_that_came_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file exists already"), replacing_directory(tmp_path / "file", overwrite=True):
        pass
    inside = tmp_path / "file" / "model"
    with pytest.raises(RunError, match=r"cannot write .*file/model: Not a directory"), replacing_directory(inside):
        pass
    model = tmp_path / "model"
    with pytest.raises(RunError, match=r"cannot write .*/model: Directory not empty"), replacing_directory(model):
        write_text(model / "theirs.txt", "theirs")
    assert (names(tmp_path), names(tmp_path / "model")) == (["file", "model"], ["theirs.txt"])


def test_json_comes_back_and_what_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 0.1, None, "é"]})
    assert read_json(path) == {"a": [1, 0.1, None, "é"]}
    assert json.loads(path.read_text()) == read_json(path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": [1, 0.1, None, "é"]}
    for content in (b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(RunError, match=r"a\.json cannot be read: ") as caught:
            read_json(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match=r"b\.json cannot be read: No such file or directory"):
        read_json(tmp_path / "b.json")


def test_damage_is_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a").write_bytes(b"123456789")
    sums = files.checksums(tmp_path)
    assert sums == {"sub/a": [9, 0xCBF43926]}  # CRC-32's check value, in every description of it
    assert files.damage(tmp_path, sums) is None
    (tmp_path / "sub" / "a").write_bytes(b"123456780")
    assert files.damage(tmp_path, sums) == "sub/a is damaged"
    (tmp_path / "sub" / "a").write_bytes(b"12345678")
    assert files.damage(tmp_path, sums) == "sub/a has 8 bytes instead of 9"
    (tmp_path / "sub" / "a").unlink()
    assert files.damage(tmp_path, sums) == "sub/a is missing"
