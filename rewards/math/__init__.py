"""Final answers of mathematics problems: find them, compare them.

extract_answer(text, mode="auto") -> str | None
verify(gold, answer) -> bool
"""

from rewards.math.extract import extract_answer
from rewards.math.numbers import parse_number
from rewards.math.verify import verify

__all__ = ["extract_answer", "parse_number", "verify"]
