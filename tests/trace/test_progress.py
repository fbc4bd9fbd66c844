"""The live view: quiet without a terminal, unbreakable on one."""

import io
import re

import pytest

from r1lab.trace.progress import Progress, sparkline

METRICS = {
    "reward": 0.75, "rewards/accuracy_reward/mean": 0.5, "rewards/format_reward/mean": 1.0,
    "completions/mean_length": 42.25, "reflection/rate": 0.125, "num_tokens": 1000.0, "step_time": 0.5,
}  # fmt: skip


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_without_a_terminal_each_step_is_one_line():
    stream = io.StringIO()
    with Progress(20, stream=stream) as progress:
        progress.update(1, METRICS)
        progress.show_sample(1, best=("text", 1.0), worst=("text", 0.0))
        progress.update(20, METRICS | {"num_tokens": 1600.0})
    first, last = stream.getvalue().splitlines()
    assert first.startswith("step  1/20  reward 0.750  accuracy 50.0%  format 100.0%  length 42.2  reflect 12.5%")
    assert "tok/s 2,000" in first and re.search(r"ETA \d+m\d\ds$", first)
    assert "tok/s 1,200" in last and last.endswith("ETA 0m00s")


def test_log_lines_can_be_spaced_but_first_and_last_are_shown():
    stream = io.StringIO()
    with Progress(50, stream=stream, log_every_s=3600) as progress:
        for step in range(1, 51):
            progress.update(step, METRICS)
    assert [line.split("/")[0] for line in stream.getvalue().splitlines()] == ["step  1", "step 50"]


def test_other_processes_are_silent():
    stream = io.StringIO()
    with Progress(5, stream=stream, enabled=False) as progress:
        progress.update(1, METRICS)
        progress.show_sample(1, best=("x", 1.0))
        progress.message("saved")
    assert stream.getvalue() == ""


def test_a_resumed_run_counts_from_where_it_was(monkeypatch):
    from r1lab.trace import progress as module

    clock = iter([0.0, 0.0, 10.0, 20.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    stream = io.StringIO()
    with Progress(110, first_step=100, stream=stream) as progress:
        progress.update(101, METRICS)
        progress.update(102, METRICS | {"num_tokens": 1500.0})
    first, second = stream.getvalue().splitlines()
    assert "tok/s -" in first and first.endswith("ETA 1m30s")
    assert "tok/s 1,000" in second and second.endswith("ETA 1m20s")


@pytest.mark.parametrize("metrics", [{}, {"reward": None, "num_tokens": float("nan")}, {"reward": float("inf")}])
def test_missing_and_nan_metrics_show_as_dashes(metrics):
    stream = io.StringIO()
    with Progress(2, stream=stream) as progress:
        progress.update(1, metrics)
    assert "reward -  accuracy -  format -  length -" in stream.getvalue()


def test_a_log_that_is_not_utf8_is_no_reason_to_stop():
    raw = io.BytesIO()
    with Progress(2, stream=io.TextIOWrapper(raw, encoding="ascii")) as progress:
        progress.message("saved → step_00001")
        progress.update(1, METRICS)
    assert b"saved ? step_00001" in raw.getvalue()


@pytest.mark.parametrize("stream_type", [io.StringIO, Terminal])
def test_a_lost_terminal_does_not_end_the_run(stream_type, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = stream_type()
    with Progress(3, stream=stream) as progress:
        progress.update(1, METRICS)

        def fail(text):
            raise OSError(5, "Input/output error")

        stream.write = fail
        progress.update(2, METRICS)
        progress.message("saved")
        progress.show_sample(2, best=("x", 1.0))
        assert not progress.enabled


HOSTILE = "[/red] [bold [link=x]] \x1b[2J\x1b]0;title\x07 \ud800 🤔 </think>\n" * 100


@pytest.mark.parametrize("columns", [1, 5, 12, 20, 40, 80, 200])
def test_hostile_completions_on_terminals_of_any_width(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "50")
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with Progress(100, stream=stream) as progress:
        for step in (1, 2, 3):
            progress.update(step, METRICS)
            progress.show_sample(step, best=(HOSTILE, 1.0), worst=("", float("nan")))
        progress.message("[/] \x1b[2J saved")
    output = stream.getvalue()
    assert "\x1b[2J" not in output and "\x1b]0;" not in output and "\x07" not in output
    if columns >= 80:
        assert "[/red]" in output and "best of step 3, reward 1.00" in output and "50.0%" in output


def test_the_view_redraws_in_place(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    with Progress(3, stream=stream) as progress:
        progress.update(1, METRICS)
        progress.update(2, METRICS)
    assert "step 1/3" in stream.getvalue() and "step 2/3" in stream.getvalue()
    assert "\x1b[1A" in stream.getvalue()  # cursor up


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(3, stream=stream) as progress:
        progress.update(1, METRICS)
    assert stream.getvalue().count("\n") == 1 and "\x1b" not in stream.getvalue()


def test_sparkline():
    assert sparkline([0.0, 0.5, 1.0], 10) == "▁▅█"
    assert sparkline([0.0, 0.0, 1.0, 1.0], 2) == "▁█"
    assert sparkline([float("nan"), -1.0, 4.0], 2) == "▁█"
    assert sparkline([], 5) == "" and sparkline([1.0], 0) == ""
    assert len(sparkline([0.1] * 400, 37)) == 37
