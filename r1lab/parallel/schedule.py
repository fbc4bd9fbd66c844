"""Pipeline schedules as tables of actions: 1F1B, ZB1P, DualPipe and DualPipeV, and a check that a table is sound.

A pipeline cuts the model into stages and a batch into micro-batches. A schedule says, for each device, in which order
it runs the pieces of work. Here it is plain data: per device a list of slots; a slot is one action, or a forward and a
backward that run at once, each one's communication hidden under the other's arithmetic (F&B).

    F  forward                            B  whole backward: gradients of input and weights
    I  backward of the input alone        W  backward of the weights alone, any time after I

The letters are those of `torch.distributed.pipelining`, and B is the report's B. W waits for nobody, so it can fill a
gap that B would have left open: that is the zero-bubble idea (Qi et al. 2023, arXiv:2401.10241).

Where each schedule keeps its stages, for `pp` devices:

    1F1B, ZB1P   stage s on device s.
    DualPipe     every stage twice, on device s and on device pp-1-s. Half of the micro-batches enter at device 0 and
                 walk down, the other half enter at the last device and walk up (DeepSeek-V3 report, section 3.2.1,
                 figure 5). Each device therefore has a forward of one stream to run beside a backward of the other.
    DualPipeV    2 x pp stages folded into a V: device d keeps stages d and 2 x pp-1-d, once each. Every micro-batch
                 walks down and up again (the "cut in half" form; half the devices of DualPipe for as many stages).

`r1lab.parallel.simulate` gives a table its times, its bubble and its memory; `r1lab.parallel.draw` draws it;
`r1lab.parallel.dualpipe` runs it.
"""

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

SCHEDULES = ("1f1b", "zb1p", "dualpipe", "dualpipev")


class Action(NamedTuple):
    """One piece of work. Printed as torch's pipelining prints it: `3F0` is the forward of stage 3, micro-batch 0."""

    kind: str
    """F, B, I or W."""
    stage: int
    micro_batch: int

    def __str__(self) -> str:
        return f"{self.stage}{self.kind}{self.micro_batch}"


Slot = tuple[Action, ...]
"""One action, or (F, B) overlapped."""

Table = list[list[Slot]]
"""Per device, its slots in order."""


def build_schedule(name: str, pp: int, num_micro_batches: int) -> Table:
    """The action table of one training step.

    Args:
        name: one of `SCHEDULES`.
        pp: devices of the pipeline.
        num_micro_batches: micro-batches of the step; DualPipe's include both directions.

    Raises:
        ValueError: an unknown name, or sizes that the schedule cannot run.
    """
    check_sizes(name, pp, num_micro_batches)
    if name in ("1f1b", "zb1p"):
        return [_one_direction(stage, pp, num_micro_batches, split=name == "zb1p") for stage in range(pp)]
    return _dualpipe(pp, num_micro_batches) if name == "dualpipe" else _dualpipev(pp, num_micro_batches)


def check_sizes(name: str, pp: int, num_micro_batches: int) -> None:
    """Raises ValueError, naming the value and the fix, for a pipeline that the schedule cannot run."""
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r}: use one of {', '.join(SCHEDULES)}")
    for label, value in (("pp", pp), ("num_micro_batches", num_micro_batches)):
        if value < 1:
            raise ValueError(f"{label}={value}: must be at least 1")
    if name == "dualpipe" and pp % 2:
        raise ValueError(
            f"pp={pp}: dualpipe pairs device s with device pp-1-s; use an even pp, for example {pp + 1}, or 1f1b"
        )
    if name == "dualpipe" and num_micro_batches % 2:
        raise ValueError(
            f"num_micro_batches={num_micro_batches}: dualpipe sends half of them each way; "
            f"use an even number, for example {num_micro_batches + 1}"
        )
    if name.startswith("dualpipe") and num_micro_batches < 2 * pp:
        raise ValueError(
            f"num_micro_batches={num_micro_batches}: {name} on {pp} devices needs at least 2 x pp = {2 * pp} to fill "
            "the pipeline; use smaller micro-batches, fewer stages, or 1f1b"
        )


def num_stages(name: str, pp: int) -> int:
    """Stages that the model is cut into: pp, and 2 x pp for DualPipeV."""
    return 2 * pp if name == "dualpipev" else pp


def stages_of_device(name: str, pp: int, device: int) -> tuple[int, ...]:
    """Stages whose weights a device keeps: one, and two for DualPipe and DualPipeV."""
    if name.startswith("dualpipe"):
        return device, num_stages(name, pp) - 1 - device
    return (device,)


def _one_direction(stage: int, pp: int, num_micro_batches: int, split: bool) -> list[Slot]:
    """1F1B, or with `split` ZB1P (ZB-H1 of Qi et al.), for one device.

    The device runs ahead by as many forwards as there are devices after it, then alternates. ZB1P has each device hold
    back as many weight gradients as there are devices before it: that many gaps wait for it at the end.
    """
    ahead = min(pp - 1 - stage, num_micro_batches)
    slots: list[Slot] = [(Action("F", stage, i),) for i in range(ahead)]
    held: deque[Slot] = deque()
    for i in range(num_micro_batches):
        if ahead + i < num_micro_batches:
            slots.append((Action("F", stage, ahead + i),))
        slots.append((Action("I" if split else "B", stage, i),))
        if split:
            held.append((Action("W", stage, i),))
            if len(held) > stage:
                slots.append(held.popleft())
    return slots + list(held)


def _dualpipe(pp: int, num_micro_batches: int) -> Table:
    half = num_micro_batches // 2
    table = []
    for device in range(pp):
        down, up = _Stream(device, first=0), _Stream(pp - 1 - device, first=half)
        # The near stream is the one that enters at this device's own end, and so reaches it first.
        near, far = (down, up) if device < pp // 2 else (up, down)
        table.append(_two_streams(near, far, min(device, pp - 1 - device), pp // 2, half))
    return table


def _dualpipev(pp: int, num_micro_batches: int) -> Table:
    return [
        _two_streams(_Stream(device, 0), _Stream(2 * pp - 1 - device, 0), device, pp, num_micro_batches)
        for device in range(pp)
    ]


class _Stream:
    """The micro-batches of one direction on one device: counts off the next forward and the next backward."""

    def __init__(self, stage: int, first: int) -> None:
        self.stage = stage
        self._next = {"F": first, "B": first}

    def take(self, kind: str) -> Action:
        counter = "F" if kind == "F" else "B"
        self._next[counter] += 1
        return Action(kind, self.stage, self._next[counter] - 1)


def _two_streams(near: _Stream, far: _Stream, outer: int, depth: int, count: int) -> list[Slot]:
    """The order of one device of DualPipe or DualPipeV (DeepSeek-V3 report, figure 5).

    Args:
        near, far: the stream that reaches the device first, and the other.
        outer: devices between this one and the end where `near` enters.
        depth: devices from that end to the turning point (pp/2, or pp for the V).
        count: micro-batches of each stream.
    """
    inner = depth - 1 - outer
    slots: list[Slot] = []
    held: deque[Slot] = deque()

    def run(times: int, *steps: Callable[[], Slot]) -> None:
        slots.extend(step() for _ in range(times) for step in steps)

    def one(kind: str, stream: _Stream) -> Callable[[], Slot]:
        return lambda: (stream.take(kind),)

    def both(forward: _Stream, backward: _Stream) -> Callable[[], Slot]:
        return lambda: (forward.take("F"), backward.take("B"))

    def split(stream: _Stream) -> Slot:
        backward = stream.take("I")
        held.append((backward._replace(kind="W"),))
        return (backward,)

    # Fill: run ahead on the near stream until the far one has come through the devices in between.
    run(2 * inner, one("F", near))
    run(outer + 1, one("F", near), one("F", far))
    # The far stream's gradients arrive; the devices behind wait for the input's share, so it goes first.
    run(inner, lambda: split(far), held.popleft, one("F", far))
    # Steady state. At the turning point the first backward has only just become possible: it is kept apart from the
    # forward, which frees the neighbours sooner where I is longer than F (under 1 % of a step either way).
    main = count - 2 * depth + outer + 1
    if inner == 0:
        run(1, one("F", near), one("B", far), both(far, near))
        main -= 1
    run(main, both(near, far), both(far, near))
    run(inner, one("B", far), both(far, near))
    # Drain: the second half of the last backwards leaves its weight gradients for the gaps that follow.
    drain = [stream for _ in range(outer + 1) for stream in (far, near)]
    for i, stream in enumerate(drain):
        slots.append(split(stream) if i > outer else (stream.take("B"),))
    run(inner, held.popleft, lambda: split(near))
    run(outer + 1, held.popleft)
    return slots


def dependencies(action: Action, last_stage: int) -> tuple[Action, ...]:
    """The actions of which one must be done before `action` can run (B and I stand for each other); empty if none."""
    kind, stage, micro_batch = action
    if kind == "F":
        return (Action("F", stage - 1, micro_batch),) if stage else ()
    if kind == "W":
        return (Action("I", stage, micro_batch),)
    if stage == last_stage:
        return (Action("F", stage, micro_batch),)
    return Action("B", stage + 1, micro_batch), Action("I", stage + 1, micro_batch)


def check_table(table: Sequence[Sequence[Slot]], num_stages: int, num_micro_batches: int) -> None:
    """Raises ValueError, naming the action, unless the table trains every micro-batch on every stage exactly once.

    Checked: each forward once; each backward once, whole or as I and W; a micro-batch's work on a stage stays on one
    device, the forward first; only a forward and a backward share a slot. That the devices cannot wait for each other
    forever is checked by `simulate`, which runs the table.
    """
    owner: dict[Action, int] = {}
    for device, slots in enumerate(table):
        for slot in slots:
            _check_slot(slot, device)
            for action in slot:
                if action in owner:
                    raise ValueError(f"{action} stands twice in the table, on devices {owner[action]} and {device}")
                owner[action] = device
                _check_order(action, owner, device)
    for stage in range(num_stages):
        for micro_batch in range(num_micro_batches):
            done = "".join(kind for kind in "FBIW" if Action(kind, stage, micro_batch) in owner)
            if done not in ("FB", "FIW"):
                raise ValueError(
                    f"stage {stage}, micro-batch {micro_batch}: has the actions {done or 'none'}; needs F and B, or F, "
                    "I and W"
                )
    if extra := [action for action in owner if action.stage >= num_stages or action.micro_batch >= num_micro_batches]:
        raise ValueError(f"{extra[0]} is outside {num_stages} stages and {num_micro_batches} micro-batches")


def _check_slot(slot: Slot, device: int) -> None:
    kinds = tuple(action.kind for action in slot)
    if len(kinds) == 1 and kinds[0] in "FBIW" or kinds == ("F", "B"):
        return
    raise ValueError(f"device {device} has a slot of {kinds}; use one of F, B, I, W, or (F, B) overlapped")


def _check_order(action: Action, owner: dict[Action, int], device: int) -> None:
    """What must stand before `action` on its own device: F before B and I, I before W."""
    if action.kind == "F":
        return
    before = action._replace(kind="I" if action.kind == "W" else "F")
    if owner.get(before) != device:
        raise ValueError(f"device {device} runs {action} without {before} before it on the same device")
