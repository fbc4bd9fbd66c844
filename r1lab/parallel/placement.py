"""Where the experts live, and which busy ones live twice (DeepSeek-V3 report, section 3.4.1).

The report keeps redundant copies of the experts that see most tokens, chosen from observed loads, and arranges the
experts so that the processes of a node share the load evenly and no more crosses the network than before. Three steps:

    1. groups to nodes    the gate's expert groups stay whole, so that the group limit stays a node limit
    2. copies             inside a node, each redundant slot goes to the expert with the most load per copy
    3. slots to ranks     inside a node, heaviest copy first, to the least loaded rank that has a slot left
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(slots=True, frozen=True)
class Placement:
    """Which expert each slot holds. Slots are numbered through the ranks, equally many to each."""

    expert_of_slot: tuple[int, ...]
    num_ranks: int

    @property
    def num_slots(self) -> int:
        return len(self.expert_of_slot)

    @property
    def slots_per_rank(self) -> int:
        return self.num_slots // self.num_ranks

    @property
    def num_experts(self) -> int:
        return max(self.expert_of_slot) + 1

    @property
    def slots_of_expert(self) -> list[list[int]]:
        """Expert -> the slots that hold it, ascending."""
        slots = [[] for _ in range(self.num_experts)]
        for slot, expert in enumerate(self.expert_of_slot):
            slots[expert].append(slot)
        return slots

    @property
    def is_redundant(self) -> bool:
        return self.num_slots > self.num_experts

    def experts_of_rank(self, rank: int) -> tuple[int, ...]:
        """The expert in each slot of a rank."""
        return self.expert_of_slot[rank * self.slots_per_rank : (rank + 1) * self.slots_per_rank]

    def rank_loads(self, load_E: Sequence[float]) -> list[float]:
        """What each rank has to do when an expert's load is shared evenly by its copies."""
        copies = [len(slots) for slots in self.slots_of_expert]
        return [
            sum(load_E[expert] / copies[expert] for expert in self.experts_of_rank(rank))
            for rank in range(self.num_ranks)
        ]

    def imbalance(self, load_E: Sequence[float]) -> float:
        """Largest load of a rank / mean load; 1 is perfect balance, and what the exchange has to wait for."""
        loads = self.rank_loads(load_E)
        return max(loads) * self.num_ranks / sum(loads) if sum(loads) else 1.0


def default_placement(num_experts: int, num_ranks: int) -> Placement:
    """Neighbouring experts together, each once. Raises ValueError when the ranks cannot share the experts evenly."""
    if num_ranks < 1 or num_experts % num_ranks:
        raise ValueError(
            f"{num_experts} routed experts cannot be shared evenly by {num_ranks} processes; use an expert-parallel "
            f"size that divides {num_experts}, or redundant experts (plan_placement)"
        )
    return Placement(tuple(range(num_experts)), num_ranks)


def plan_placement(
    load_E: Sequence[float], num_ranks: int, *, num_redundant: int = 0, num_nodes: int = 1, n_group: int = 1
) -> Placement:
    """A placement for observed loads.

    Args:
        load_E: tokens that chose each expert, in any unit.
        num_ranks: processes of the expert group, node by node.
        num_redundant: slots beyond one for each expert.
        num_nodes: nodes that the ranks are spread over evenly.
        n_group: the gate's expert groups; a node gets whole ones.

    Raises:
        ValueError: a load that is negative or not finite, or sizes that do not divide.
    """
    load_E = [float(load) for load in load_E]
    _check_sizes(load_E, num_ranks, num_redundant, num_nodes, n_group)
    group_size = len(load_E) // n_group
    groups = [range(group * group_size, (group + 1) * group_size) for group in range(n_group)]
    node_of_group = _pack([sum(load_E[expert] for expert in group) for group in groups], num_nodes)
    expert_of_slot = []
    for node in range(num_nodes):
        experts = [expert for group, home in zip(groups, node_of_group) if home == node for expert in group]
        copies = _add_copies(experts, load_E, num_redundant // num_nodes)
        expert_of_slot += _share_out(copies, load_E, num_ranks // num_nodes)
    return Placement(tuple(expert_of_slot), num_ranks)


def _add_copies(experts: list[int], load_E: list[float], num_redundant: int) -> dict[int, int]:
    """Expert -> number of copies."""
    copies = dict.fromkeys(experts, 1)
    for _ in range(num_redundant):
        busiest = max(experts, key=lambda expert: load_E[expert] / copies[expert])
        copies[busiest] += 1
    return copies


def _share_out(copies: dict[int, int], load_E: list[float], num_ranks: int) -> list[int]:
    """The experts of the ranks' slots, rank by rank."""
    items = [expert for expert, count in copies.items() for _ in range(count)]
    home = _pack([load_E[expert] / copies[expert] for expert in items], num_ranks, kinds=items)
    return [expert for rank in range(num_ranks) for expert in sorted(e for e, r in zip(items, home) if r == rank)]


def _pack(weights: list[float], num_bins: int, kinds: list[int] | None = None) -> list[int]:
    """Each item's bin: equally many items a bin, sums as even as longest-first makes them. Items of one kind go to
    different bins where there is room, since a second copy on the same rank relieves nobody."""
    room = [len(weights) // num_bins] * num_bins
    sums, held = [0.0] * num_bins, [set() for _ in range(num_bins)]
    home = [0] * len(weights)
    for item in sorted(range(len(weights)), key=lambda item: -weights[item]):
        kind = item if kinds is None else kinds[item]
        chosen = min((b for b in range(num_bins) if room[b]), key=lambda b: (kind in held[b], sums[b], b))
        home[item] = chosen
        room[chosen] -= 1
        sums[chosen] += weights[item]
        held[chosen].add(kind)
    return home


def _check_sizes(load_E: list[float], num_ranks: int, num_redundant: int, num_nodes: int, n_group: int) -> None:
    if not load_E or not all(0 <= load < float("inf") for load in load_E):
        raise ValueError(f"load_E={load_E}: give each expert's load, a finite number that is not negative")
    if num_ranks < 1 or num_nodes < 1 or num_ranks % num_nodes:
        raise ValueError(f"num_ranks={num_ranks} must be a multiple of num_nodes={num_nodes}, both positive")
    if n_group < 1 or len(load_E) % n_group or n_group % num_nodes:
        raise ValueError(
            f"n_group={n_group} must divide the {len(load_E)} experts and be a multiple of num_nodes={num_nodes}, so "
            "that every node holds whole groups"
        )
    num_slots = len(load_E) + num_redundant
    if num_redundant < 0 or num_redundant % num_nodes or num_slots % num_ranks:
        raise ValueError(
            f"num_redundant={num_redundant} must be a multiple of num_nodes={num_nodes} and bring the {len(load_E)} "
            f"experts to a multiple of num_ranks={num_ranks}; the next that does is "
            f"{_next_redundant(len(load_E), num_redundant, num_ranks, num_nodes)}"
        )


def _next_redundant(num_experts: int, num_redundant: int, num_ranks: int, num_nodes: int) -> int | str:
    candidates = range(max(0, num_redundant), max(0, num_redundant) + num_ranks * num_nodes + 1)
    fitting = (n for n in candidates if n % num_nodes == 0 and (num_experts + n) % num_ranks == 0)
    return next(fitting, "none")


class ReplicaChoice:
    """Turns chosen experts into chosen slots; the copies of an expert take turns."""

    def __init__(self, placement: Placement) -> None:
        slots = placement.slots_of_expert
        self.is_identity = placement.expert_of_slot == tuple(range(placement.num_experts))
        most = max(len(own) for own in slots)
        self.slot_ER = torch.tensor([own + own[:1] * (most - len(own)) for own in slots])
        self.copies_E = torch.tensor([len(own) for own in slots])

    def slots(self, topk_idx_TK: torch.Tensor, offset: int) -> torch.Tensor:
        """Expert numbers [T, K] -> slot numbers [T, K]; `offset` lets ranks begin with different copies."""
        if self.is_identity:
            return topk_idx_TK
        device = topk_idx_TK.device
        slot_ER, expert_P = self.slot_ER.to(device), topk_idx_TK.flatten()
        if slot_ER.shape[1] == 1:
            return slot_ER[:, 0][topk_idx_TK]
        order_P = expert_P.argsort(stable=True)
        first_E = torch.searchsorted(expert_P[order_P], torch.arange(len(slot_ER), device=device))
        turn_P = torch.empty_like(expert_P)
        turn_P[order_P] = torch.arange(len(expert_P), device=device) - first_E[expert_P[order_P]]
        turn_P = (turn_P + offset) % self.copies_E.to(device)[expert_P]
        return slot_ER[expert_P, turn_P].view_as(topk_idx_TK)
