"""Programs that attack: each scores 0, in time, and leaves nothing behind.

`hostile/d_*` deny service, `e_*` try to escape, `h_*` try to score without solving. The task is solve(n) = n * n + 1,
or the same by standard input and output. A program prints PWNED where an attack works.
"""

import glob
import os
import re
import time
from pathlib import Path

import pytest

from rewards.code import run_program, run_tests

TIMEOUT_S = 0.5
SLACK_S = 30.0  # A hang is to be found here, not a busy machine.
OURS = sorted((Path(__file__).parent / "hostile").glob("*.py"))
GIVEN = sorted(Path(os.environ.get("R1LAB_DATA", "/nonexistent")).glob("rewards/hostile/*.py"))
MARKED_PLACES = ("~", "/tmp", "/var/tmp", "/dev/shm", "/etc", os.path.dirname(os.__file__))

CALLS = [{"type": "call", "args": [n], "expected": n * n + 1} for n in (3, 7, 12)]
ASSERTS = [{"type": "assert", "code": f"assert solve({n}) == {n * n + 1}"} for n in (3, 7, 12)]
SCRIPTS = [{"type": "stdin_stdout", "input": f"{n}\n", "output": f"{n * n + 1}\n"} for n in (3, 7, 12)]


def test_there_are_enough_of_each_kind():
    counts = {kind: sum(path.name.startswith(kind) for path in OURS) for kind in ("d_", "e_", "h_")}
    assert min(counts.values()) >= 25


@pytest.mark.parametrize("path", [*OURS, *GIVEN], ids=lambda path: path.stem)
def test_scores_nothing_and_leaves_nothing(path, backend):
    code = path.read_text()
    is_function = re.search(r"^# mode: function", code, re.IGNORECASE) is not None
    started = time.monotonic()
    for tests in (CALLS, ASSERTS) if is_function else (SCRIPTS,):
        report = run_tests(code, tests, entry_point="solve", timeout_s=TIMEOUT_S, require=backend, stop_at_failure=True)
        assert report.passed == 0, report
        assert report.is_conclusive, report  # Nor does it get out of its score.
    script = code + "\nprint(solve(int(input())))\n" if is_function else code
    result = run_program(script, "3\n", timeout_s=TIMEOUT_S, require=backend)
    assert "PWNED" not in result.stdout
    assert time.monotonic() - started < 3 * TIMEOUT_S + SLACK_S
    marks = [mark for place in MARKED_PLACES for mark in glob.glob(os.path.expanduser(place) + "/hostile_probe*")]
    assert marks == []


def test_the_solution_scores(backend):
    solution = "def solve(n):\n    return n * n + 1\n"
    assert run_tests(solution, CALLS + ASSERTS, entry_point="solve", require=backend).status == "ok"
    assert run_tests("print(int(input()) ** 2 + 1)", SCRIPTS, require=backend).status == "ok"


def test_a_program_is_not_hurt_by_the_one_before(backend):
    """What one leaves in its directory is gone when the next starts."""
    run_program("import os; os.makedirs('a/b'); open('a/b/c', 'w').write('left')", require=backend)
    assert run_program("import os; print(os.listdir('.'))", require=backend).stdout == "[]\n"


def test_no_attack_turns_a_zero_into_none(backend):
    """Values too deep or too big to be passed on are the program's fault, also where the test passes them back."""
    nested = "def solve(value):\n    for _ in range(58):\n        value = [value]\n    return value\n"
    for code in (nested, nested.replace("[value]", "(value,)"), "def solve(value):\n    return 1 << 65000\n"):
        test = {"type": "assert", "code": "value = solve(solve(1))\nassert solve([value, value * value]) == 0"}
        report = run_tests(code, [test], entry_point="solve", require=backend)
        assert report.passed == 0 and report.is_conclusive, report
