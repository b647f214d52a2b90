"""A run's directory: one run at a time, and it resumes with what it began with."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dinojax.config.finetune import FinetuneConfig
from dinojax.config.parser import parse
from dinojax.config.pretrain import PretrainConfig
from dinojax.errors import UsageError
from dinojax.runs.directory import check_config, lock, pin_data, write_config

REQUIRED = ["--data", "d", "--out", "o"]


def pretrain(*arguments: str) -> PretrainConfig:
    return parse(PretrainConfig, [*REQUIRED, *arguments], "pretrain")


def kept(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_second_run_is_refused_until_the_first_has_died(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    hold = "import sys, pathlib, dinojax.runs.directory as r\n"
    hold += "with r.lock(pathlib.Path(sys.argv[1])): print('held', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", hold, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with (
        pytest.raises(UsageError, match=rf"{run} is in use by process {child.pid} on .*--out") as caught,
        lock(run),
    ):
        pytest.fail("two runs hold one directory")
    assert "\n" not in str(caught.value)
    child.kill()
    child.communicate()
    with lock(run):
        assert (run / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        with pytest.raises(UsageError, match="in use"), lock(run):
            pass
    with lock(run):
        pass


def test_a_run_keeps_its_whole_configuration(tmp_path: Path) -> None:
    first = pretrain("--crops.locals", "3", "--threads", "7", "--distributed.processes", "2")
    check_config(first, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    write_config(first, tmp_path / "run", 0)
    assert kept(tmp_path / "run") == ["config.yaml"]
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (stored["optim"]["lr"], stored["threads"], stored["distributed"]["processes"]) == (2e-4, 7, 2)
    again = parse(PretrainConfig, ["--config", str(tmp_path / "run" / "config.yaml")], "pretrain")
    assert again == first


def test_what_changes_no_result_is_not_compared(tmp_path: Path) -> None:
    write_config(pretrain(), tmp_path, 0)
    free = ["--out", "p", "--threads", "9", "--workers", "3", "--cache_gib", "1", "--on_bad_file", "skip"]
    free += ["--keep_checkpoints", "5", "--fsdp", "0", "--distributed.coordinator", "a:1", "--accept_changes", "seed"]
    config = pretrain(*free)
    check_config(config, tmp_path, ["seed"])
    write_config(config, tmp_path, 10)
    assert kept(tmp_path) == ["config.yaml"]
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["workers"] == 3


def test_a_changed_configuration_is_refused_key_by_key(tmp_path: Path) -> None:
    write_config(pretrain(), tmp_path, 0)
    before = (tmp_path / "config.yaml").read_bytes()
    changed = pretrain("--optim.lr", "1", "--steps", "5")
    with pytest.raises(
        UsageError, match=r"optim\.lr was 0\.0002, is 1\.0, steps was None, is 5;.*--out.*optim\.lr,steps$"
    ):
        check_config(changed, tmp_path)
    with pytest.raises(UsageError, match=r"configuration: steps was None, is 5;.*--accept_changes optim\.lr,steps$"):
        check_config(changed, tmp_path, ["optim.lr"])
    with pytest.raises(UsageError, match=r"--accept_changes optim\.rl: there is no such key; did you mean optim\.lr\?"):
        check_config(changed, tmp_path, ["optim.rl", "steps"])
    with pytest.raises(UsageError, match="there is no such key"):
        check_config(changed, tmp_path / "new", ["nonsense"])
    check_config(changed, tmp_path, ["optim.lr", "steps"])
    assert (tmp_path / "config.yaml").read_bytes() == before
    write_config(changed, tmp_path, 40)
    write_config(pretrain("--optim.lr", "2"), tmp_path, 40)
    assert kept(tmp_path) == ["config.before_step40.1.yaml", "config.before_step40.yaml", "config.yaml"]
    assert (tmp_path / "config.before_step40.yaml").read_bytes() == before
    rates = [yaml.safe_load((tmp_path / name).read_text())["optim"]["lr"] for name in kept(tmp_path)]
    assert rates == [1.0, 2e-4, 2.0]


def test_a_section_that_comes_or_goes_is_a_change(tmp_path: Path) -> None:
    without, given = pretrain(), pretrain("--ibot_head.prototypes", "8")
    write_config(without, tmp_path / "a")
    with pytest.raises(UsageError, match=r"configuration: ibot_head\.bottleneck was not there, is 256, .*prototypes$"):
        check_config(given, tmp_path / "a")
    write_config(given, tmp_path / "b")
    with pytest.raises(UsageError, match=r"ibot_head\.prototypes was 8, is not there; .*prototypes$"):
        check_config(without, tmp_path / "b")


def test_only_what_a_verb_lets_change_is_advised(tmp_path: Path) -> None:
    def finetune(*arguments: str) -> FinetuneConfig:
        return parse(FinetuneConfig, [*REQUIRED, *arguments], "finetune")

    changeable = ("data", "data_root")
    write_config(finetune(), tmp_path)
    with pytest.raises(UsageError, match=r"epochs was 30, is 3; choose another --out$"):
        check_config(finetune("--epochs", "3"), tmp_path, (), changeable)
    with pytest.raises(UsageError, match=r"--accept_changes data_root$"):
        check_config(finetune("--data_root", "x"), tmp_path, (), changeable)
    with pytest.raises(UsageError, match="--accept_changes epochs: choose another --out; only data, data_root may"):
        check_config(finetune(), tmp_path, ["epochs"], changeable)
    check_config(finetune("--data_root", "x"), tmp_path, ["data_root"], changeable)
    write_config(finetune("--data_root", "x"), tmp_path)
    assert kept(tmp_path) == ["config.before.yaml", "config.yaml"]


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "\x00"])
def test_a_damaged_configuration_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"config\.yaml cannot be read") as caught:
        check_config(pretrain(), tmp_path)
    assert "\n" not in str(caught.value)


def test_checkpoints_without_their_configuration_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"has checkpoints but no config\.yaml"):
        check_config(PretrainConfig(data="d", out="o"), tmp_path)


def test_a_renamed_folder_is_accepted_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, paths = tmp_path / "run", ["a.png", "b.png"]
    write_config(PretrainConfig(data="old", out="o"), run)
    pin_data(run, paths, accept=False)
    renamed = PretrainConfig(data="new", out="o")
    with pytest.raises(UsageError, match=r"data was 'old', is 'new'; .*--accept_changes data, .*moved or renamed"):
        check_config(renamed, run)
    check_config(renamed, run, ["data"])
    pin_data(run, paths, accept=True)
    assert (
        capsys.readouterr().out == f"the images are those that the run in {run} began with, by their relative paths\n"
    )
    pin_data(run, ["c.png"], accept=True)
    assert capsys.readouterr().out == f"from now on the run in {run} has other images: 2 then, 1 now\n"


def test_a_run_stays_with_its_images(tmp_path: Path) -> None:
    run = tmp_path / "run"
    pin_data(run, ["a.png", "b.png"], accept=False)
    assert json.loads((run / "data.json").read_text())["images"] == 2
    pin_data(run, ["a.png", "b.png"], accept=False)
    with pytest.raises(UsageError, match=r"2 then, 3 now.*put them back.*--out.*--accept_changes data"):
        pin_data(run, ["a.png", "b.png", "c.png"], accept=False)
    for others in (["b.png", "a.png"], ["a.png", "c.png"], ["a.pngb.png", ""]):
        with pytest.raises(UsageError, match="2, but other paths or order"):
            pin_data(run, others, accept=False)
    pin_data(run, ["c.png"], accept=True)
    pin_data(run, ["c.png"], accept=False)
    (run / "data.json").write_text('{"images": 1')
    with pytest.raises(UsageError, match=r"data\.json cannot be read"):
        pin_data(run, ["c.png"], accept=False)
