"""Draws pipeline schedules above one another on one time axis, with their bubbles:

    python -m r1lab.parallel.draw schedules.png --pp 8 --num_micro_batches 20

A cell is a slot, numbered by its micro-batch; DualPipe's second direction (the V's way back up) is dotted. A cell of
two colours is a forward and a backward that run at once. White is bubble.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from r1lab.parallel.schedule import SCHEDULES, Action
from r1lab.parallel.simulate import BUBBLE_FORMULAS, Durations, Span, Timeline, bubble_formula, simulate

COLORS = {"F": "#f2b85a", "B": "#5a9e6f", "I": "#a5cfae", "W": "#5b84b1"}
LABELS = {"F": "F: forward", "B": "B: whole backward", "I": "I: backward, input", "W": "W: backward, weights"}
HIDES_NUMBERS_BELOW = 0.09
"""Width of a cell in inches under which its number would not be legible."""


def draw_timelines(timelines: list[Timeline], path: str | Path) -> Path:
    """Draws the timelines under each other, to the same scale, and returns the path of the picture.

    Raises:
        ValueError: no timelines.
    """
    if not timelines:
        raise ValueError("timelines is empty: give at least one, from r1lab.parallel.simulate.simulate")
    heights = [len(timeline.spans) for timeline in timelines]
    figure, axes = plt.subplots(
        len(timelines), 1, sharex=True, squeeze=False, layout="constrained",
        figsize=(16, 0.9 + sum(0.26 * height + 0.62 for height in heights)), gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    longest = max(timeline.makespan for timeline in timelines)
    for ax, timeline in zip(axes[:, 0], timelines):
        _draw_timeline(ax, timeline, cell_inches=14.5 * timeline.durations.weight / longest)
        ax.set_xlim(0, longest * 1.005)
    axes[-1, 0].set_xlabel("time, in the unit of F")
    handles = [Patch(facecolor=color, edgecolor="0.3", label=LABELS[kind]) for kind, color in COLORS.items()]
    if any(timeline.name.startswith("dualpipe") for timeline in timelines):
        handles.append(Patch(facecolor="white", edgecolor="0.3", hatch="....", label="the device's second stage"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return Path(path)


def _draw_timeline(ax: Axes, timeline: Timeline, cell_inches: float) -> None:
    for device, spans in enumerate(timeline.spans):
        for span in spans:
            _draw_span(ax, device, span, numbered=cell_inches > HIDES_NUMBERS_BELOW, home=device)
    num_devices = len(timeline.spans)
    formula = bubble_formula(timeline.name, num_devices, timeline.durations)
    title = (
        f"{timeline.name}: done at {timeline.makespan:g}, bubble {timeline.bubble:g} "
        f"[{BUBBLE_FORMULAS[timeline.name]} = {formula:g}], "
        f"activations of {max(timeline.peak_activations)} micro-batches"
    )
    ax.set_title(title, loc="left", fontsize=10)
    ax.set_ylim(num_devices - 0.45, -0.55)
    ax.set_yticks(range(num_devices), [f"device {i}" for i in range(num_devices)], fontsize=7)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _draw_span(ax: Axes, device: int, span: Span, numbered: bool, home: int) -> None:
    height = 0.86 / len(span.slot)
    for i, action in enumerate(span.slot):
        bottom = device - 0.43 + i * height
        hatch = "...." if action.stage != home else None
        ax.add_patch(
            Rectangle((span.start, bottom), span.end - span.start, height, facecolor=COLORS[action.kind],
                      edgecolor="0.35", linewidth=0.4, hatch=hatch, hatch_linewidth=0.25)
        )  # fmt: skip
        if numbered:
            _number(ax, action, (span.start + span.end) / 2, bottom + height / 2, len(span.slot))


def _number(ax: Axes, action: Action, x: float, y: float, sharing: int) -> None:
    ax.text(x, y, str(action.micro_batch), ha="center", va="center", fontsize=6.5 if sharing == 1 else 5)


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m r1lab.parallel.draw", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("path", help="the picture to write (png, svg or pdf)")
    parser.add_argument("--schedules", nargs="+", default=["1f1b", "zb1p", "dualpipe"], choices=SCHEDULES)
    parser.add_argument("--pp", type=int, default=8, help="devices of the pipeline")
    parser.add_argument("--num_micro_batches", type=int, default=20, help="micro-batches of the step, both directions")
    parser.add_argument("--times", type=float, nargs=4, default=(1.0, 2.0, 1.0, 2.6), metavar=("F", "B", "W", "F&B"))
    args = parser.parse_args(argv)
    try:
        timelines = [simulate(name, args.pp, args.num_micro_batches, Durations(*args.times)) for name in args.schedules]
    except ValueError as error:
        parser.error(str(error))
    print(draw_timelines(timelines, args.path))


if __name__ == "__main__":
    main()
