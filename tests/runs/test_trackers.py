"""Metrics that are sent to services: what arrives, and that none of them can stop a run."""

import struct
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto import event_pb2

from dinojax.errors import UsageError
from dinojax.runs import trackers
from dinojax.runs.metrics import MetricsLog
from dinojax.runs.trackers import check_trackers, open_trackers

EVENT = event_pb2.Event  # type: ignore[attr-defined]
DEADLINE_S = 60


def read_events(folder: Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of all event files: records of length, checksum, protocol buffer, checksum."""
    found = []
    for path in sorted(folder.iterdir()):
        data, place = path.read_bytes(), 0
        while place + 12 <= len(data):  # the last record may still be on its way
            (length,) = struct.unpack_from("<Q", data, place)
            event = EVENT.FromString(data[place + 12 : place + 12 + length])
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            place += 16 + length
    return found


def test_tensorboard_holds_what_the_log_holds(tmp_path: Path) -> None:
    track = open_trackers(["tensorboard"], tmp_path, {}, 0)
    with MetricsLog(tmp_path / "metrics.jsonl", None, track) as log:
        log.write(1, {"loss": 6.5, "lr": 0.25}, {"images_per_s": 70.0})
        log.write(2, {"loss": 6.25}, {})
    expected = [(1, "loss", 6.5), (1, "lr", 0.25), (1, "time/images_per_s", 70.0), (2, "loss", 6.25)]
    deadline = time.monotonic() + DEADLINE_S
    while read_events(tmp_path / "tensorboard") != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert read_events(tmp_path / "tensorboard") == expected


def fake(**functions: Any) -> types.ModuleType:
    module = types.ModuleType("fake")
    module.__dict__.update(functions)
    return module


def test_the_other_services_continue_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    run = types.SimpleNamespace(
        log=lambda metrics, step: calls.append(("wandb", step, metrics)), info=types.SimpleNamespace(run_id="seven")
    )
    monkeypatch.setitem(sys.modules, "wandb", fake(init=lambda **given: calls.append((given["id"],)) or run))
    client = fake(
        start_run=lambda run_id, run_name: calls.append((run_id, run_name)) or run,
        log_params=lambda params: calls.append((params,)),
        log_metrics=lambda metrics, step: calls.append(("mlflow", step, metrics)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", client)
    for start in (0, 1):
        open_trackers(["wandb", "mlflow"], tmp_path / "run", {"seed": 0}, start)(start + 1, {"loss": 1.0})
    (name,), *rest = calls
    sent = [[(service, step, {"loss": 1.0}) for service in ("wandb", "mlflow")] for step in (1, 2)]
    assert rest == [(None, "run"), ({"seed": "0"},), *sent[0], (name,), ("seven", "run"), *sent[1]]


def test_a_service_that_fails_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*given: Any) -> Any:
        raise ConnectionError("no route to host")

    services = {
        "tensorboard": (broken, "sys"),
        "wandb": (lambda *given: broken, "sys"),
        "mlflow": (lambda *given: lambda step, metrics: print(step), "sys"),
    }
    monkeypatch.setattr(trackers, "_SERVICES", services)
    track = open_trackers(list(services), tmp_path, {}, 0)
    track(1, {"loss": 1.0})
    track(2, {"loss": 1.0})
    failed = [
        f"log_to {name} failed, the run continues without it: no route to host" for name in ("tensorboard", "wandb")
    ]
    assert capsys.readouterr().out.splitlines() == [*failed, "1", "2"]


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_SERVICES", {"wandb": (trackers.wandb, "no_such_package")})
    with pytest.raises(UsageError, match=r"log_to wandb needs .*: pip install 'dinojax\[wandb\]'$"):
        check_trackers(["wandb"])
