"""Which processes form a pipeline, which do the same stages on other data, and which keep a stage's second copy."""

from dataclasses import dataclass
from datetime import timedelta

import torch.distributed as dist

from r1lab.parallel.expert_groups import ExpertGroups, own_group, require_processes


@dataclass(slots=True, frozen=True)
class PipelineGroups:
    """The process groups of a pipeline, as this process sees them. Rank r is device r // dp of pipeline r % dp."""

    pipeline: dist.ProcessGroup
    """The devices of this pipeline, in order."""
    data: dist.ProcessGroup
    """The processes that are this device in all pipelines: neighbouring ranks, with the same stages and other data."""
    mirror: dist.ProcessGroup | None
    """This device and device pp-1-d, which keep the same two stages under DualPipe; None for an odd pp."""

    @property
    def pp(self) -> int:
        """Devices of a pipeline."""
        return dist.get_world_size(self.pipeline)

    @property
    def device(self) -> int:
        """This process's place in its pipeline."""
        return dist.get_rank(self.pipeline)

    @property
    def dp(self) -> int:
        """Pipelines side by side."""
        return dist.get_world_size(self.data)

    def expert_groups(self) -> ExpertGroups:
        """For `parallelize_experts`: the experts of a stage, spread over the processes that run that stage."""
        return ExpertGroups(expert=self.data, replica=None, ranks_per_node=self.dp)


def build_pipeline_groups(pp: int, *, timeout: timedelta | None = None) -> PipelineGroups:
    """Cuts the world into pipelines of `pp` devices, as many as fit. Every process must call it.

    timeout: how long an exchange may wait for a silent process; None: the backend's default, many minutes.

    Raises:
        RuntimeError: torch.distributed is not initialised.
        ValueError: `pp` does not divide the world.
    """
    world_size = require_processes("a pipeline")
    if pp < 1 or world_size % pp:
        raise ValueError(
            f"pp={pp} does not divide the {world_size} processes of this job; start a multiple of {pp} processes, or "
            "change pp"
        )
    dp = world_size // pp
    pipeline = own_group([range(place, world_size, dp) for place in range(dp)], timeout)
    data = own_group([range(device * dp, (device + 1) * dp) for device in range(pp)], timeout)
    mirror = None
    if pp % 2 == 0:
        pairs = [(device * dp + place, (pp - 1 - device) * dp + place) for device in range(pp // 2) for place in
                 range(dp)]  # fmt: skip
        mirror = own_group(pairs, timeout)
    return PipelineGroups(pipeline, data, mirror)
