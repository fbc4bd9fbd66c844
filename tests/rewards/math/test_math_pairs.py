"""Pairs (gold, answer) as people and models write them, collected without looking at how they are decided."""

import json
from pathlib import Path

from rewards.math import verify


def test_pairs():
    lines = Path(__file__).with_name("pairs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) > 500
    assert [row for row in rows if verify(row["gold"], row["answer"], timeout_s=60) != row["equal"]] == []
