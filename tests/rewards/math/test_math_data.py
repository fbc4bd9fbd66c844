"""Cases kept outside the repository: R1LAB_DATA names their directory."""

import json
import os
import random
import re
from fractions import Fraction
from pathlib import Path

import pytest

from rewards.math import extract_answer, verify

DATA = Path(os.environ.get("R1LAB_DATA", "missing"))
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="R1LAB_DATA does not name a directory")


def _read(name):
    path = DATA / name
    return [json.loads(line) for line in path.open(encoding="utf-8")] if path.exists() else []


def test_math_cases():
    wrong = [row for row in _read("rewards/math_cases.jsonl") if verify(row["gold"], row["answer"]) != row["equal"]]
    assert not wrong


def test_extraction_cases():
    rows = _read("rewards/extract_cases.jsonl")
    wrong = [
        row["note"]
        for row in rows
        if verify(row["gold"], extract_answer(row["completion"], "boxed")) != bool(row["reward"])
    ]
    assert not wrong


def test_gsm8k_golds_equal_themselves_and_no_other():
    solutions = [row["answer"] for name in ("train", "test") for row in _read(f"gsm8k/{name}.jsonl")]
    finals = [solution.rpartition("####")[2].strip() for solution in solutions]
    for solution, final in zip(solutions, finals):
        assert verify(solution, extract_answer(solution, "gsm8k"))
        for answer in _spellings(final):
            assert verify(solution, answer), (final, answer)
    generator = random.Random(0)
    for _ in range(5000):
        one, other = generator.choice(finals), generator.choice(finals)
        same = Fraction(one.replace(",", "")) == Fraction(other.replace(",", ""))
        assert all(verify(one, answer) == same for answer in _spellings(other)), (one, other)


def _spellings(final):
    spellings = [
        rf"\boxed{{{final}}}",
        f"${final}",
        rf"\boxed{{\${final}}}",
        f"{final} dollars",
        rf"{final}\text{{ eggs}}",
    ]
    if re.fullmatch(r"-?[0-9,]+", final):
        value = int(final.replace(",", ""))
        spellings += [f"{value:,}", rf"\boxed{{{value:,}.00}}", f"{value:,}".replace(",", "{,}"), f"{value}.0"]
    return spellings
