"""A group of completions -> what the page shows of it, with reflection and aha spans marked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from r1lab.trace.reflection import aha_events, find_reflections
from r1lab.trace.report.shading import Shade, encode_lengths, encode_levels, token_ends, utf16_positions

FLAGS = {
    "c": "right",
    "w": "wrong",
    "f": "reflects",
    "a": "aha",
    "i": "inverse",
    "t": "truncated",
    "d": "rewards disagree",
}
"""A completion's properties, as letters; the page filters by them. The scripts name the same letters."""


@dataclass
class GroupBuilder:
    """Turns the rows of one group into the page's record of it."""

    reward_names: list[str]
    accuracy_name: str | None
    decode: Callable[[int], str] | None
    """Token id -> text; None: tokens are not shaded."""
    shades: list[tuple[Shade, float]]
    """What to shade by, each with the end of its scale."""

    def build(self, rows: list[dict]) -> dict[str, Any]:
        """Column by column, so that names are not repeated for every completion; positions are JavaScript's."""
        tokens = [self._tokens(row) for row in rows]
        marks = [mark_spans(row["completion"], self.is_right(row)) for row in rows]
        return {
            "step": rows[0]["step"],
            "index": rows[0]["group"],
            "prompt": rows[0]["prompt"],
            "texts": [row["completion"] for row in rows],
            "reward": [_rounded(row["reward"]) for row in rows],
            "rewards": [[_rounded(row[name]) for name in self.reward_names] for row in rows],
            "advantage": [_rounded(row["advantage"]) for row in rows],
            "num_tokens": [row["num_tokens"] for row in rows],
            "flags": [self.flags(row, {kind for _, _, kind in spans}) for row, spans in zip(rows, marks, strict=True)],
            "marks": marks,
            "lengths": [lengths for lengths, _ in tokens],
            **{shade.key: [levels.get(shade.key) for _, levels in tokens] for shade, _ in self.shades},
        }

    def is_right(self, row: dict) -> bool | None:
        """By the accuracy reward; None where it does not say."""
        value = row[self.accuracy_name] if self.accuracy_name else None
        return None if value is None or value != value else value == 1.0

    def flags(self, row: dict, mark_kinds: set[str]) -> str:
        """The letters of `FLAGS` that hold for a completion, given the kinds of its marks."""
        right = self.is_right(row)
        holds = {
            "c": right is True,
            "w": right is False,
            "f": not mark_kinds.isdisjoint("fai"),
            "a": "a" in mark_kinds,
            "i": "i" in mark_kinds,
            "t": row["finish_reason"] == "length",
            "d": self._rewards_disagree(row, right),
        }
        return "".join(letter for letter in FLAGS if holds[letter])

    def _rewards_disagree(self, row: dict, right: bool | None) -> bool:
        """A right answer to which another reward gives nothing, or a wrong one that training pushes up."""
        others = [row[name] for name in self.reward_names if name != self.accuracy_name]
        return any(value <= 0 for value in others) if right else right is False and row["advantage"] > 0

    def _tokens(self, row: dict) -> tuple[str | None, dict[str, str]]:
        """The lengths of a completion's tokens and its levels by shade; (None, {}) where they are unknown."""
        token_ids = row.get("token_ids")
        if self.decode is None or token_ids is None:
            return None, {}
        text = row["completion"]
        ends = token_ends(text, [self.decode(token_id) for token_id in token_ids.tolist()])
        if ends is None:
            return None, {}
        position = utf16_positions(text)
        values = {shade: shade.values(row) for shade, _ in self.shades}
        levels = {
            shade.key: encode_levels(values[shade], largest)
            for shade, largest in self.shades
            if values[shade] is not None
        }
        return encode_lengths([position(end) for end in ends]), levels


def mark_spans(text: str, is_right: bool | None) -> list[list]:
    """What to mark in a completion: [start, end, kind] by place, positions in UTF-16 units.

    Kinds: "f", a reflective word; "a" (aha) or "i" (inverse), the one that decided the outcome; "t", the try that it
    reconsidered.
    """
    reflections = find_reflections(text)
    spans = {(found.start, found.end): "f" for found in reflections}
    # Without a reflective word there is no event; looking for one takes longer than the rest.
    for event in aha_events(text, is_right) if reflections and is_right is not None else []:
        spans[event.attempt.start, event.attempt.end] = "t"
        spans[event.reflection.start, event.reflection.end] = event.kind[0]
    position = utf16_positions(text)
    return [[position(start), position(end), kind] for (start, end), kind in sorted(spans.items())]


def _rounded(value: float) -> float | None:
    if value is None or value != value:
        return None
    return int(value) if value.is_integer() else round(value, 4)
