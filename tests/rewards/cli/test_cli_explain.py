import subprocess
import sys
from pathlib import Path

import pytest

import rewards
from rewards.cli import main


@pytest.mark.parametrize(
    ("gold", "answer", "status", "shown"),
    [
        (r"\frac{1}{2}", r"so \boxed{0.5}", 0, ["0.5", "1/2", "match"]),
        ("4", "5", 1, ["mismatch"]),
        ("(1, 2)", "<think>a</think> <answer>(1, 2)</answer>", 0, ["(1, 2)", "match"]),
        ("4", r"<think>\boxed{4}", 1, ["no_answer"]),
        ("", "4", 1, ["unparsable_gold"]),
    ],
)
def test_explain(capsys, gold, answer, status, shown):
    assert main(["explain", gold, answer]) == status
    output = capsys.readouterr().out
    assert "extracted" in output and "parsed" in output and "decided by:" in output
    assert all(text in output for text in shown)


def test_an_extraction_mode(capsys):
    assert main(["explain", "18", "#### 18", "--mode", "gsm8k"]) == 0
    assert main(["explain", "18", "18", "--mode", "boxed"]) == 1
    assert "no_answer" in capsys.readouterr().out


def test_a_bad_timeout(capsys):
    assert main(["explain", "1", "1", "--timeout", "0"]) == 2
    assert "timeout_s=0.0" in capsys.readouterr().err


def test_runs_as_a_module():
    root = Path(rewards.__file__).parents[1]
    command = [sys.executable, "-m", "rewards", "explain", "4", "4"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=60)
    assert run.returncode == 0 and "match" in run.stdout
