"""How long a pipeline schedule takes, where it waits and what it keeps: formulas, and a simulator to check them with.

The formulas are table 2 of the DeepSeek-V3 report (section 3.2.1), for `pp` devices and the durations of `Durations`:

    1F1B       (pp - 1)(F + B)                     activations of pp micro-batches
    ZB1P       (pp - 1)(F + B - 2W)                pp
    DualPipe   (pp/2 - 1)(F&B + B - 3W)            pp + 1, and the weights twice
    DualPipeV  (pp - 1)(F&B + B - 3W)              2 pp + 1 of its half-size stages (2 pp stages on pp devices)

The simulator runs an action table slot by slot: a slot starts when its device is free and what it depends on is done.
The bubble of a device is the time until the last device is done, minus the time it works itself; a schedule's bubble
is its worst device's. Measured so, 1F1B equals its formula always, ZB1P where W is no longer than F and than I = B - W,
and DualPipe and DualPipeV where in addition I = F (as in counting FLOPs). Where I is longer than F, DualPipe does
better than its formula; where W is longer than F, ZB1P and DualPipe do worse (`tests/parallel/test_simulate.py`).

On real devices stages are not equal and transfers are not free, so a formula is the floor: DeepSeek measured 2.06 s of
bubble in V3's step of 19.93 s (arXiv:2505.09343, table 4), where the formula, from the same table's times, gives about
1.1 s.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from r1lab.parallel.schedule import (
    SCHEDULES,
    Action,
    Slot,
    Table,
    build_schedule,
    check_table,
    dependencies,
    num_stages,
)


@dataclass(frozen=True, slots=True)
class Durations:
    """Times of one stage and one micro-batch, in any unit.

    Raises:
        ValueError: a time is not positive, or B is not longer than the W inside it.
    """

    forward: float = 1.0
    backward: float = 2.0
    """The whole backward (B), weight gradients included."""
    weight: float = 1.0
    """The weight gradients alone (W)."""
    overlapped: float = 3.0
    """A forward and a backward that run at once (F&B); F + B if nothing is gained."""
    transfer: float = 0.0
    """Sending an activation or a gradient to another device; hidden if zero."""

    def __post_init__(self) -> None:
        for name in ("forward", "backward", "weight", "overlapped"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: a duration must be positive")
        if self.weight >= self.backward:
            raise ValueError(
                f"weight={self.weight}: must be shorter than backward={self.backward}, of which it is part"
            )
        if self.transfer < 0:
            raise ValueError(f"transfer={self.transfer}: must not be negative")

    def of(self, slot: Slot) -> float:
        """The time of a slot."""
        if len(slot) == 2:
            return self.overlapped
        kinds = {"F": self.forward, "B": self.backward, "W": self.weight, "I": self.backward - self.weight}
        return kinds[slot[0].kind]


BUBBLE_FORMULAS = {
    "1f1b": "(pp - 1)(F + B)",
    "zb1p": "(pp - 1)(F + B - 2W)",
    "dualpipe": "(pp/2 - 1)(F&B + B - 3W)",
    "dualpipev": "(pp - 1)(F&B + B - 3W)",
}


def bubble_formula(name: str, pp: int, durations: Durations) -> float:
    """The report's bubble, in the unit of the durations.

    Raises:
        ValueError: an unknown schedule.
    """
    forward, backward, weight = durations.forward, durations.backward, durations.weight
    if name == "1f1b":
        return (pp - 1) * (forward + backward)
    if name == "zb1p":
        return (pp - 1) * (forward + backward - 2 * weight)
    if name in SCHEDULES:
        turns = pp / 2 - 1 if name == "dualpipe" else pp - 1
        return turns * (durations.overlapped + backward - 3 * weight)
    raise ValueError(f"schedule={name!r}: use one of {', '.join(SCHEDULES)}")


def peak_activations_formula(name: str, pp: int, num_micro_batches: int) -> int:
    """Micro-batches whose activations of one stage a device keeps at most (report, table 2)."""
    peak = num_stages(name, pp) + name.startswith("dualpipe")
    passes = 2 if name == "dualpipev" else 1
    return min(peak, passes * num_micro_batches)


@dataclass(frozen=True, slots=True)
class Span:
    """A slot with its times."""

    slot: Slot
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """A schedule that has run."""

    name: str
    durations: Durations
    spans: list[list[Span]]
    """Per device, its slots in order."""

    @property
    def makespan(self) -> float:
        """Time from the first slot to the end of the last."""
        return max(spans[-1].end for spans in self.spans)

    @property
    def bubbles(self) -> list[float]:
        """Per device, the time it waits within the makespan."""
        return [self.makespan - sum(self.durations.of(span.slot) for span in spans) for spans in self.spans]

    @property
    def bubble(self) -> float:
        """The bubble of the device that waits most."""
        return max(self.bubbles)

    @property
    def peak_activations(self) -> list[int]:
        """Per device, the most (micro-batch, stage) pairs kept at once, from F's start until its input's gradient is
        there. What W still needs of them afterwards, the linear layers' inputs, is not counted, as in the report."""
        return [_peak(spans, release="BI") for spans in self.spans]

    @property
    def peak_weight_inputs(self) -> list[int]:
        """Per device, the same count, kept until the weights' gradients are there too: the upper bound."""
        return [_peak(spans, release="BW") for spans in self.spans]


def _peak(spans: Sequence[Span], release: str) -> int:
    kept = peak = 0
    for span in spans:
        # Both halves of an overlapped slot are alive while it runs.
        kept += sum(action.kind == "F" for action in span.slot)
        peak = max(peak, kept)
        kept -= sum(action.kind in release for action in span.slot)
    return peak


def simulate(name: str, pp: int, num_micro_batches: int, durations: Durations | None = None) -> Timeline:
    """Builds, checks and runs a schedule.

    Raises:
        ValueError: sizes that the schedule cannot run (see `build_schedule`).
    """
    table = build_schedule(name, pp, num_micro_batches)
    check_table(table, num_stages(name, pp), num_micro_batches)
    durations = durations or Durations()
    return Timeline(name, durations, run_table(table, num_stages(name, pp), durations))


def run_table(table: Table, num_stages: int, durations: Durations) -> list[list[Span]]:
    """Per device, when each slot runs if all devices follow the table in order.

    Raises:
        ValueError: the devices wait for each other forever; names what each waits for.
    """
    done: dict[Action, tuple[float, int]] = {}
    spans: list[list[Span]] = [[] for _ in table]
    while any(len(ran) < len(slots) for ran, slots in zip(spans, table)):
        moved = [_advance(device, slots, spans[device], done, num_stages - 1, durations) for device, slots in
                 enumerate(table)]  # fmt: skip
        if not any(moved):
            stuck = {i: str(slots[len(spans[i])][0]) for i, slots in enumerate(table) if len(spans[i]) < len(slots)}
            raise ValueError(f"the table deadlocks: each device waits at {stuck}; reorder the slots before these")
    return spans


def _advance(
    device: int,
    slots: Sequence[Slot],
    ran: list[Span],
    done: dict[Action, tuple[float, int]],
    last_stage: int,
    durations: Durations,
) -> bool:
    """Runs a device's slots until one depends on work that is not done; True if any ran."""
    before = len(ran)
    while len(ran) < len(slots):
        slot = slots[len(ran)]
        start = ran[-1].end if ran else 0.0
        for action in slot:
            needs = dependencies(action, last_stage)
            found = [done[need] for need in needs if need in done]
            if needs and not found:
                return len(ran) > before
            for end, source in found:
                start = max(start, end + (durations.transfer if source != device else 0.0))
        ran.append(Span(slot, start, start + durations.of(slot)))
        done.update((action, (ran[-1].end, device)) for action in slot)
    return len(ran) > before
