"""What counts as the same answer where the field's graders differ."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Policy:
    """Options of a check; the defaults are what `verify` does. Raises ValueError for decimal_digits below 1."""

    decimal_digits: int = 7
    """Significant digits from which a decimal may stand for an irrational or repeating value that it agrees with in
    every digit: 3.141593 equals \\pi, 3.14 does not. Math-Verify rounds to 6 decimal places instead."""
    percent_as_number: bool = True
    """A gold of 50\\% is met by 0.5 and also by 50. Never the other way round: 50 is not 0.5."""
    inequality_as_interval: bool = True
    """1 < x < 2 answers a gold of (1, 2). Math-Verify accepts only an interval for an inequality."""
    require_unit: bool = False
    """A gold with a unit needs an answer with one. A unit that differs is wrong in any case."""
    decimal_comma: bool = False
    """1,22 is the number 1.22, not the list of 1 and 22; 1,234 stays a thousand."""
    evaluate_operators: bool = False
    """Evaluate sums, integrals and limits (in the worker). Otherwise they equal only what is written the same way,
    so that restating the question earns nothing."""

    def __post_init__(self):
        if self.decimal_digits < 1:
            raise ValueError(f"decimal_digits={self.decimal_digits}; pass at least 1")


DEFAULT = Policy()
