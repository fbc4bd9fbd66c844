"""A figure of a plan: its value is computed from the very formula that is shown, so the two cannot drift apart."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

FUNCTIONS = {"min": min, "max": max, "ceil": math.ceil, "floor": math.floor}


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its unit, its formula and what went into it."""

    name: str
    value: float
    unit: str
    formula: str
    inputs: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The value as read by people: `70.3 KB`, `671.03 B` (billion, for counts), `2.66 M h`."""
        return format_value(self.value, self.unit)


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that belong together, and remarks about them."""

    title: str
    figures: list[Figure]
    notes: list[str] = field(default_factory=list)


def compute(name: str, unit: str, formula: str, **inputs: float) -> Figure:
    """A figure whose value is `formula` over `inputs`.

    Args:
        name: its key in the JSON; unique within a plan.
        unit: "" for a count, or B, B/token, FLOP, s, h, $, %, ... ("%" is a share, shown times 100).
        formula: arithmetic over the inputs' names; `min`, `max`, `ceil` and `floor` are known. It is a constant of this
            package, never user input.
    """
    value = eval(formula, {"__builtins__": {}}, {**FUNCTIONS, **inputs})
    return Figure(name, value, unit, formula, inputs)


def find_value(figures: Iterable[Figure], name: str) -> float:
    """The value of the figure called `name`.

    Raises:
        KeyError: there is none.
    """
    return {figure.name: figure.value for figure in figures}[name]


def format_value(value: float, unit: str) -> str:
    """A number with three or more significant digits, a decimal prefix and its unit; bytes count in thousands (KB)."""
    if unit == "%":
        return f"{100 * value:.2f} %"
    if unit == "s" and 0 < abs(value) < 1:
        prefix, scale = ("m", 1e-3) if abs(value) >= 1e-3 else ("u", 1e-6)
        return f"{value / scale:.4g} {prefix}s"
    if unit == "$":
        return f"$ {value:,.0f}" if abs(value) >= 100 else f"$ {value:.2f}"
    # Seconds and small whole things stay as they are; large counts are in billions, everything else in G.
    steps = () if unit in ("s", "devices", "nodes") else ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K"))
    scale, prefix = next((step for step in steps if abs(value) >= step[0]), (1.0, ""))
    is_measure = unit.startswith(("B", "FLOP"))
    prefix = "B" if prefix == "G" and not is_measure else prefix
    number = f"{value / scale:.2f}" if prefix else f"{value:.4g}"
    return " ".join(filter(None, [number, prefix + unit] if is_measure else [number, prefix, unit]))
