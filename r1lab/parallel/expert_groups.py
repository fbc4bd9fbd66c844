"""Which processes share a set of experts, and which hold the same ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(slots=True, frozen=True)
class ExpertGroups:
    """The process groups of expert parallelism, as this process sees them."""

    expert: dist.ProcessGroup
    """Neighbouring ranks that hold all experts between them."""
    replica: dist.ProcessGroup | None
    """The ranks that hold the same experts as this one, one from each expert group; None when there is one group."""
    ranks_per_node: int
    """Ranks of the expert group on one node."""
    across_nodes: dist.ProcessGroup | None = None
    """One rank on each node of the expert group, those with this rank's place in their node; None for one hop."""
    inside_node: dist.ProcessGroup | None = None
    """This node's ranks of the expert group; None for one hop."""

    @property
    def ep_size(self) -> int:
        return dist.get_world_size(self.expert)

    @property
    def ep_rank(self) -> int:
        return dist.get_rank(self.expert)

    @property
    def num_nodes(self) -> int:
        return self.ep_size // self.ranks_per_node


def build_expert_groups(
    ep_size: int, *, ranks_per_node: int | None = None, timeout: timedelta | None = None
) -> ExpertGroups:
    """Cuts the world into expert groups of `ep_size` neighbouring ranks. Every process must call it.

    ranks_per_node: with several nodes to an expert group, tokens cross the network once a node, to the rank with the
    sender's place there, which passes them on inside (DeepSeek-V3 report, section 3.2.2); None or ep_size: one hop,
    straight to the expert's rank. timeout: how long an exchange may wait for a silent process; None: the backend's
    default, many minutes.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        ValueError: sizes that do not divide the world or each other.
    """
    world_size = require_processes("expert parallelism")
    if ep_size < 1 or world_size % ep_size:
        raise ValueError(
            f"ep_size={ep_size} does not divide the {world_size} processes of this job; start a multiple of {ep_size} "
            "processes, or change ep_size"
        )
    ranks_per_node = ep_size if ranks_per_node is None else ranks_per_node
    if ranks_per_node < 1 or ep_size % ranks_per_node:
        raise ValueError(f"ranks_per_node={ranks_per_node} does not divide ep_size={ep_size}; use a divisor of it")
    starts = range(0, world_size, ep_size)
    nodes = range(0, world_size, ranks_per_node)
    expert = own_group([range(start, start + ep_size) for start in starts], timeout)
    replica = across = inside = None
    if len(starts) > 1:
        replica = own_group([range(place, world_size, ep_size) for place in range(ep_size)], timeout)
    if ranks_per_node < ep_size:
        places = [(start, place) for start in starts for place in range(ranks_per_node)]
        across = own_group([range(s + place, s + ep_size, ranks_per_node) for s, place in places], timeout)
        inside = own_group([range(node, node + ranks_per_node) for node in nodes], timeout)
    return ExpertGroups(expert, replica, ranks_per_node, across, inside)


def require_processes(what: str) -> int:
    """The number of processes. Raises RuntimeError, naming what needs them, where torch.distributed has none."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"{what} needs initialised processes: start with torchrun or accelerate launch, and call "
            "torch.distributed.init_process_group (Accelerator does)"
        )
    return dist.get_world_size()


def own_group(parts: Sequence[Sequence[int]], timeout: timedelta | None) -> dist.ProcessGroup:
    """The group of this process among groups that part the world."""
    return dist.new_subgroups_by_enumeration([list(part) for part in parts], timeout=timeout)[0]


def check_agreement(signature: dict[str, object]) -> None:
    """Raises ValueError, on every process, when processes pass different signatures; names what differs and where."""
    signatures = [None] * dist.get_world_size()
    dist.all_gather_object(signatures, signature)
    for name in signature:
        odd = [rank for rank, other in enumerate(signatures) if other[name] != signatures[0][name]]
        if odd:
            raise ValueError(
                f"the processes disagree about the {name}: ranks {odd} differ from rank 0; give every process the same "
                "checkpoint (or seed) and settings"
            )


def fingerprint(weight: torch.Tensor) -> int:
    """The sum of a tensor's bits: the same for equal tensors, and hardly ever for others."""
    bits = weight.detach().contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.dtype.itemsize])
    return int(bits.sum(dtype=torch.int64))
