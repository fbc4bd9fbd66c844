"""Final answers of mathematics problems: find them, compare them.

extract_answer(text, mode="auto") -> str | None
verify(gold, answer) -> bool
check(gold, answer) -> Verdict: with the reason, the rule that decided and the parsed forms
"""

from rewards.math.extract import extract_answer
from rewards.math.numbers import parse_number
from rewards.math.policy import Policy
from rewards.math.verdict import Verdict, check, verify

__all__ = ["Policy", "Verdict", "check", "extract_answer", "parse_number", "verify"]
