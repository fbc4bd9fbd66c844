"""Expert placement for skewed loads (DeepSeek-V3 report, section 3.4.1)."""

import itertools

import pytest
import torch

from r1lab.parallel.placement import Placement, ReplicaChoice, default_placement, plan_placement

ZIPF = [1000 / (rank + 1) for rank in range(64)]


def shuffled_zipf(seed: int) -> list[float]:
    return [ZIPF[i] for i in torch.randperm(64, generator=torch.Generator().manual_seed(seed)).tolist()]


def test_default_placement_keeps_neighbours_together():
    placement = default_placement(8, 4)
    assert [placement.experts_of_rank(rank) for rank in range(4)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert not placement.is_redundant
    with pytest.raises(ValueError, match="8 routed experts .* 3 processes"):
        default_placement(8, 3)


def test_small_plans_are_as_balanced_as_any():
    load = [7.0, 5.0, 4.0, 3.0, 2.0, 1.0]
    best = min(Placement(order, 3).imbalance(load) for order in itertools.permutations(range(6)))
    assert plan_placement(load, 3).imbalance(load) == pytest.approx(best)


def test_the_busiest_expert_gets_the_copy():
    placement = plan_placement([1, 1, 12, 1, 1, 1], 2, num_redundant=2)
    assert placement.num_slots == 8 and placement.slots_per_rank == 4
    copies = [len(slots) for slots in placement.slots_of_expert]
    assert copies == [1, 1, 3, 1, 1, 1]
    assert {2} <= set(placement.experts_of_rank(0)) & set(placement.experts_of_rank(1))


def test_copies_of_an_expert_go_to_different_ranks_where_there_is_room():
    placement = plan_placement(shuffled_zipf(0), 8, num_redundant=8)
    per_slot = placement.slots_per_rank
    for slots in placement.slots_of_expert:
        assert len({slot // per_slot for slot in slots}) == len(slots)


@pytest.mark.parametrize("seed", range(5))
def test_redundancy_levels_a_zipf_load(seed):
    load = shuffled_zipf(seed)
    before = default_placement(64, 8).imbalance(load)
    packed = plan_placement(load, 8).imbalance(load)
    redundant = plan_placement(load, 8, num_redundant=8).imbalance(load)
    print(f"max/mean load of 8 ranks: {before:.3f} in order, {packed:.3f} packed, {redundant:.3f} with 8 copies")
    assert redundant < 1.02 and redundant < packed <= before


@pytest.mark.parametrize("num_redundant", [0, 8])
def test_a_node_keeps_whole_groups(num_redundant):
    load = shuffled_zipf(1)
    placement = plan_placement(load, 8, num_redundant=num_redundant, num_nodes=4, n_group=8)
    slots_per_node = placement.num_slots // 4
    node_of_group = {}
    for slot, expert in enumerate(placement.expert_of_slot):
        assert node_of_group.setdefault(expert // 8, slot // slots_per_node) == slot // slots_per_node
    assert sorted(node_of_group.values()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(placement.expert_of_slot) == set(range(64))


def test_no_load_at_all_is_a_load():
    placement = plan_placement([0.0] * 8, 4, num_redundant=4)
    assert set(placement.expert_of_slot) == set(range(8)) and placement.imbalance([0.0] * 8) == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"load_E": [1.0, -1.0], "num_ranks": 2}, "load_E=.*-1.0.* not negative"),
        ({"load_E": [1.0, float("nan")], "num_ranks": 2}, "finite"),
        ({"load_E": [], "num_ranks": 2}, "load_E"),
        ({"load_E": [1.0] * 8, "num_ranks": 3}, "num_redundant=0 .*next that does is 1"),
        ({"load_E": [1.0] * 8, "num_ranks": 4, "num_redundant": 3}, "next that does is 4"),
        ({"load_E": [1.0] * 8, "num_ranks": 4, "num_nodes": 3}, "num_nodes=3"),
        ({"load_E": [1.0] * 8, "num_ranks": 4, "num_nodes": 2, "n_group": 1}, "n_group=1"),
        ({"load_E": [1.0] * 8, "num_ranks": 4, "n_group": 3}, "n_group=3"),
        ({"load_E": [1.0] * 8, "num_ranks": 4, "num_redundant": -4}, "num_redundant=-4"),
    ],
)
def test_impossible_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        plan_placement(**arguments)


def test_copies_take_turns():
    placement = Placement((0, 1, 2, 0, 3, 0), 2)
    choice = ReplicaChoice(placement)
    topk_idx = torch.tensor([[0, 1], [0, 2], [3, 0], [0, 1], [2, 0], [0, 3]])
    slots = choice.slots(topk_idx, offset=0)
    assert torch.equal(torch.tensor(placement.expert_of_slot)[slots], topk_idx)
    assert [int((slots == slot).sum()) for slot in (0, 3, 5)] == [2, 2, 2]
    assert not torch.equal(choice.slots(topk_idx, offset=1), slots)
    assert torch.equal(ReplicaChoice(default_placement(4, 2)).slots(topk_idx, offset=1), topk_idx)
