"""metrics.jsonl: appended, cut back, read while half-written."""

import json
import os

import numpy
import pytest
import torch

from r1lab.trace.metrics import MetricsLog, find_accuracy_key, read_metrics


def test_lines_are_readable_while_the_log_is_open(tmp_path):
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.append({"step": 1, "reward": 0.5})
    log.append({"step": 2, "reward": torch.tensor(0.25), "kl": numpy.float32(1.0), "split": "test"})
    assert read_metrics(log.path) == [
        {"step": 1, "reward": 0.5},
        {"step": 2, "reward": 0.25, "kl": 1.0, "split": "test"},
    ]
    log.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.tensor(-torch.inf), numpy.float64("nan")])
def test_what_json_lacks_becomes_null(tmp_path, value):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append({"step": 1, "loss": value, "nested": {"values": [value, 1.0]}})
    row = json.loads(log.path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert row == {"step": 1, "loss": None, "nested": {"values": [None, 1.0]}}


@pytest.mark.parametrize(
    "metrics, named",
    [({"reward": 1.0}, "step"), ({"step": "1"}, "step"), ({"step": 1, "x": torch.zeros(2)}, "'x'"),
     ({"step": 1, "y": object()}, "'y'")],
)  # fmt: skip
def test_bad_metrics_are_named_and_write_nothing(tmp_path, metrics, named):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        log.append({"step": 0})
        with pytest.raises(ValueError, match=named):
            log.append(metrics)
    assert read_metrics(log.path) == [{"step": 0}]


def test_truncate_after_drops_later_steps_and_half_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = [0.1, 1 / 3, 1e-300, 2.0**60]
    with MetricsLog(path) as log:
        for step, value in enumerate(values, start=1):
            log.append({"step": step, "loss": value})
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')
    log = MetricsLog(path)
    assert log.truncate_after(2) == 2
    log.append({"step": 3, "loss": 7.0})
    log.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(1, 0.1), (2, 1 / 3), (3, 7.0)]
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_truncate_after_works_on_an_open_log_and_on_no_file(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.truncate_after(3) == 0
    for step in (1, 2, 3):
        log.append({"step": step})
    assert log.truncate_after(1) == 2
    log.append({"step": 2})
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2]


def test_truncation_that_fails_keeps_the_old_file(tmp_path, monkeypatch):
    with MetricsLog(tmp_path / "metrics.jsonl") as log:
        for step in (1, 2):
            log.append({"step": step})

    def fail(*_):
        raise OSError("killed here")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="killed here"):
        log.truncate_after(1)
    assert [row["step"] for row in read_metrics(log.path)] == [1, 2]


def test_opening_cuts_half_a_line_so_that_appending_is_safe(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "x": 0.')
    assert read_metrics(path) == [{"step": 1}]
    with MetricsLog(path) as log:
        log.append({"step": 2})
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"st')
    MetricsLog(path)
    assert path.read_text() == ""


@pytest.mark.parametrize("line", ['{"step": 2, "x": 0.', "[1, 2]", '{"reward": 1.0}'])
def test_a_bad_line_in_the_middle_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(path)


@pytest.mark.parametrize(
    "names, expected",
    [
        (["format_reward", "countdown_reward", "accuracy_reward"], "accuracy_reward"),
        (["format_reward", "countdown_reward"], "countdown_reward"),
        (["format_reward", "tag_count_reward"], None),
        ([], None),
    ],
)
def test_find_accuracy_key(names, expected):
    keys = ["reward", "rewards/accuracy/std", *(f"rewards/{name}/mean" for name in names)]
    assert find_accuracy_key(keys) == (expected and f"rewards/{expected}/mean")
