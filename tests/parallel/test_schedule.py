"""Action tables: complete, in order, refused when broken."""

from collections import Counter

import pytest

from r1lab.parallel.schedule import (
    SCHEDULES,
    Action,
    build_schedule,
    check_table,
    num_stages,
    stages_of_device,
)
from r1lab.parallel.simulate import Durations, run_table

SIZES = [(1, 1), (1, 5), (2, 4), (3, 3), (4, 8), (4, 9), (6, 12), (8, 20), (16, 32)]


def _fits(name, pp, micro_batches):
    if name == "dualpipe" and (pp % 2 or micro_batches % 2):
        return False
    return not name.startswith("dualpipe") or micro_batches >= 2 * pp


CASES = [(name, *sizes) for name in SCHEDULES for sizes in SIZES if _fits(name, *sizes)]


@pytest.mark.parametrize(("name", "pp", "micro_batches"), CASES)
def test_every_micro_batch_passes_every_stage_once(name, pp, micro_batches):
    table = build_schedule(name, pp, micro_batches)
    check_table(table, num_stages(name, pp), micro_batches)
    counts = Counter((action.kind, action.stage) for slots in table for slot in slots for action in slot)
    for stage in range(num_stages(name, pp)):
        assert counts["F", stage] == micro_batches
        assert counts["B", stage] + counts["I", stage] == micro_batches
        assert counts["I", stage] == counts["W", stage]


@pytest.mark.parametrize(("name", "pp", "micro_batches"), CASES)
def test_a_device_runs_only_stages_whose_weights_it_keeps(name, pp, micro_batches):
    for device, slots in enumerate(build_schedule(name, pp, micro_batches)):
        assert {action.stage for slot in slots for action in slot} == set(stages_of_device(name, pp, device))


@pytest.mark.parametrize("micro_batches", [8, 10, 20])
def test_dualpipe_is_a_mirror_image(micro_batches):
    table = build_schedule("dualpipe", 4, micro_batches)
    half = micro_batches // 2
    for down, up in zip(table, reversed(table)):
        assert [[(a.kind, a.stage, (a.micro_batch + half) % micro_batches) for a in slot] for slot in down] == [
            [tuple(a) for a in slot] for slot in up
        ]


def test_overlapped_slots_pair_the_two_streams():
    for slots in build_schedule("dualpipe", 8, 20):
        pairs = [slot for slot in slots if len(slot) == 2]
        assert pairs
        for forward, backward in pairs:
            assert forward.stage != backward.stage
            assert (forward.micro_batch < 10) != (backward.micro_batch < 10)


def test_actions_print_as_in_torch_pipelining():
    torch_schedules = pytest.importorskip("torch.distributed.pipelining.schedules")
    for slots in build_schedule("zb1p", 2, 2):
        for (action,) in slots:
            parsed = torch_schedules._Action.from_str(str(action))
            assert (parsed.stage_index, parsed.microbatch_index) == (action.stage, action.micro_batch)
            assert str(parsed) == str(action)


@pytest.mark.parametrize(
    ("name", "pp", "micro_batches", "named", "fix"),
    [
        ("gpipe", 4, 8, "schedule='gpipe'", "1f1b, zb1p"),
        ("1f1b", 0, 8, "pp=0", "at least 1"),
        ("1f1b", 4, 0, "num_micro_batches=0", "at least 1"),
        ("dualpipe", 5, 20, "pp=5", "even pp, for example 6"),
        ("dualpipe", 4, 9, "num_micro_batches=9", "for example 10"),
        ("dualpipe", 4, 6, "num_micro_batches=6", "2 x pp = 8"),
        ("dualpipev", 4, 7, "num_micro_batches=7", "2 x pp = 8"),
    ],
)
def test_sizes_that_cannot_run_are_named(name, pp, micro_batches, named, fix):
    with pytest.raises(ValueError, match=f"^{named}") as error:
        build_schedule(name, pp, micro_batches)
    assert fix in str(error.value)


def _broken(change):
    table = build_schedule("zb1p", 2, 2)
    change(table)
    return table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[0].append((Action("F", 0, 0),)), "0F0 stands twice"),
        (lambda t: t[0].pop(), "stage 0, micro-batch 1: has the actions FI"),
        (lambda t: t[1].insert(0, t[1].pop(1)), "device 1 runs 1I0 without 1F0 before it"),
        (lambda t: t[0].append(t[1].pop()), "device 0 runs 1W1 without 1I1 before it"),
        (lambda t: t[0].append((Action("F", 0, 7), Action("W", 0, 7))), "slot of"),
        (lambda t: t[0].extend([(Action("F", 0, 2),), (Action("B", 0, 2),)]), "0F2 is outside"),
    ],
)
def test_a_broken_table_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        check_table(_broken(change), 2, 2)


def test_a_table_that_waits_for_itself_is_refused():
    def wait(table):
        table[0].insert(0, table[0].pop(2))

    with pytest.raises(ValueError, match="deadlocks.*0I0"):
        run_table(_broken(wait), 2, Durations())
