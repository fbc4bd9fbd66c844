"""The tables of rewards/README.md name what exists."""

import re
from pathlib import Path

import rewards
from rewards import REWARDS

README = (Path(rewards.__file__).parent / "README.md").read_text(encoding="utf-8")
TESTS = Path(__file__).parent


def test_every_reward_is_in_the_table():
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} >= set(REWARDS)


def test_every_test_named_exists():
    cells = [line.split("|")[3] for line in README.splitlines() if line.startswith("|") and ".py::" in line]
    for cell in cells:
        file = re.search(r"`(test_\w+\.py)::", cell)[1]
        (path,) = TESTS.rglob(file)
        for name in re.findall(r"::(test_\w+)", cell):
            assert f"def {name}(" in path.read_text(encoding="utf-8"), f"{file} has no {name}"
    assert len(cells) >= 10
