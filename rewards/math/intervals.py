"""Sets of real numbers as unions of intervals and points."""

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import NamedTuple

from rewards.math.values import nearly_equal

Bound = Fraction | float
"""A float only for the two infinities."""


class Piece(NamedTuple):
    """From `low` to `high`; one number when they are equal."""

    low: Bound
    has_low: bool
    high: Bound
    has_high: bool


LINE = Piece(-math.inf, False, math.inf, False)


def same_bound(one: Bound, other: Bound) -> bool:
    if math.inf in (one, other) or -math.inf in (one, other):
        return one == other
    return nearly_equal(one, other)


class RealSet:
    """A union of disjoint pieces in order; touching pieces are merged."""

    def __init__(self, pieces: Iterable[Piece]):
        self.pieces = _merge(sorted(filter(_is_not_empty, pieces), key=lambda piece: (piece.low, not piece.has_low)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RealSet) or len(self.pieces) != len(other.pieces):
            return False
        return all(
            one.has_low == two.has_low
            and one.has_high == two.has_high
            and same_bound(one.low, two.low)
            and same_bound(one.high, two.high)
            for one, two in zip(self.pieces, other.pieces, strict=True)
        )

    def __contains__(self, number: Fraction) -> bool:
        for piece in self.pieces:
            at_low, at_high = same_bound(piece.low, number), same_bound(piece.high, number)
            if (at_low and piece.has_low) or (at_high and piece.has_high):
                return True
            if piece.low < number < piece.high and not (at_low or at_high):
                return True
        return False

    def __or__(self, other: "RealSet") -> "RealSet":
        return RealSet([*self.pieces, *other.pieces])

    def __and__(self, other: "RealSet") -> "RealSet":
        return (self.complement() | other.complement()).complement()

    def __sub__(self, other: "RealSet") -> "RealSet":
        return self & other.complement()

    def complement(self) -> "RealSet":
        pieces, low, has_low = [], -math.inf, False
        for piece in self.pieces:
            pieces.append(Piece(low, has_low, piece.low, not piece.has_low and piece.low != -math.inf))
            low, has_low = piece.high, not piece.has_high and piece.high != math.inf
        pieces.append(Piece(low, has_low, math.inf, False))
        return RealSet(pieces)


def _is_not_empty(piece: Piece) -> bool:
    if same_bound(piece.low, piece.high):
        return piece.has_low and piece.has_high
    return piece.low < piece.high


def _merge(pieces: list[Piece]) -> tuple[Piece, ...]:
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        touches = last and same_bound(last.high, piece.low) and (last.has_high or piece.has_low)
        if last and (touches or (piece.low < last.high and not same_bound(last.high, piece.low))):
            high, has_high = max((last.high, last.has_high), (piece.high, piece.has_high))
            has_low = last.has_low or (piece.has_low and same_bound(piece.low, last.low))
            merged[-1] = Piece(last.low, has_low, high, has_high)
        else:
            merged.append(piece)
    return tuple(merged)
