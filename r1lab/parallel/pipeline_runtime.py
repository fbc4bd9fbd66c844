"""Our action tables in the terms of `torch.distributed.pipelining`, and its runtime with them loaded (torch 2.13).

The runtime knows one chain of stages, 0 to N-1, each on one device, and does every micro-batch on all of them. 1F1B,
ZB1P and DualPipeV are such chains. DualPipe is two: every stage stands twice, and each copy does half of the
micro-batches. It is given to the runtime as a chain of 2 x pp *places* that is cut in the middle:

    place p of the first pp    stage p, on device p, the micro-batches that walk down
    place pp + s               stage s, on device pp-1-s, those that walk up

so place p is where DualPipeV has stage p, and each place does n/2 micro-batches, numbered from 0 in either stream. At
the cut, places pp-1 and pp on the last device, `Place` takes its input from the caller and computes a loss, where the
runtime would pass tensors on. Each device feeds the runtime the ids that enter there and the labels that end there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    OVERLAP_F_B,
    RECV_B,
    RECV_F,
    _Action,
    _add_send_recv,
    _ComputationType,
    _PipelineScheduleRuntime,
)

from r1lab.parallel.schedule import Slot, Table, num_stages


@dataclass(slots=True, frozen=True)
class Chain:
    """How the runtime sees a schedule: `streams` chains of `stages` stages, one behind the other."""

    pp: int
    stages: int
    """Stages that the model is cut into."""
    streams: int
    """2 for DualPipe, else 1."""
    micro_batches: int
    """Of one stream."""

    @staticmethod
    def of(name: str, pp: int, num_micro_batches: int) -> "Chain":
        streams = 2 if name == "dualpipe" else 1
        return Chain(pp, num_stages(name, pp), streams, num_micro_batches // streams)

    @property
    def num_places(self) -> int:
        return self.stages * self.streams

    def places_of_device(self, device: int) -> tuple[int, ...]:
        """One place, or two in a V: down the devices and up again."""
        return (device,) if self.num_places == self.pp else (device, self.num_places - 1 - device)

    def micro_batches_of(self, place: int) -> slice:
        """Of all micro-batches of a step, those that a place does."""
        first = place // self.stages * self.micro_batches
        return slice(first, first + self.micro_batches)

    def translate(self, slot: Slot) -> _Action:
        """A slot of the table as the runtime's action."""
        actions = []
        for kind, stage, micro_batch in slot:
            stream, micro_batch = divmod(micro_batch, self.micro_batches)
            actions.append(_Action(stream * self.stages + stage, _ComputationType(kind), micro_batch))
        return actions[0] if len(actions) == 1 else _Action(-1, OVERLAP_F_B, None, tuple(actions))


class Place(PipelineStage):
    """A stage of one stream: first and last in its own stream, whatever its place in the runtime's chain."""

    def __init__(self, module: nn.Module, place: int, chain: Chain, group: dist.ProcessGroup, **options) -> None:
        self._stages = chain.stages
        device = next(module.parameters()).device
        super().__init__(module, place, chain.num_places, device, group=group, **options)

    @property
    def is_first(self) -> bool:
        return self.stage_index % self._stages == 0

    @property
    def is_last(self) -> bool:
        return self.stage_index % self._stages == self._stages - 1

    # The runtime passes tensors between neighbouring places of one device. At the cut nothing is to be passed.
    def set_local_fwd_input(self, prev_stage_outputs, mb_index: int) -> None:
        if not self.is_first:
            super().set_local_fwd_input(prev_stage_outputs, mb_index)

    def get_local_bwd_output(self, mb_index: int):
        return () if self.is_first else super().get_local_bwd_output(mb_index)

    def set_local_bwd_input(self, next_stage_bwd_outputs, mb_index: int) -> None:
        if not self.is_last:
            super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """As in torch, where a first stage (nothing to do at I, all of it at W) is known by its index 0 alone."""
        if not self.is_first or self.stage_index == 0:
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
            return
        input_values, _, stage_output, output_grads = self.backward_state.pop(bwd_chunk_id)
        tensors = {"stage_output": stage_output, "output_grads": output_grads, "input_values": input_values}
        self.backward_maybe_with_nosync("full", tensors, last_backward)


def build_runtime(
    table: Table, chain: Chain, places: Sequence[Place], loss_fn: Callable[..., torch.Tensor]
) -> _PipelineScheduleRuntime:
    """torch's runtime, with the table and the sends and receives that it needs."""
    runtime = _PipelineScheduleRuntime(list(places), chain.micro_batches, loss_fn=loss_fn, scale_grads=False)
    runtime._prepare_schedule_with_comms(_with_transfers(table, chain), format="compute_comms")
    return runtime


def _with_transfers(table: Table, chain: Chain) -> dict[int, list[_Action]]:
    """The table with torch's sends and receives.

    torch would have the second stream's first forward wait for the end of the first stream. What comes from outside at
    the cut is therefore told as received before all else, which torch lets pass, and then taken out again.
    """
    rank_of = {place: device for device in range(chain.pp) for place in chain.places_of_device(device)}
    outside = {
        _Action(place, kind, micro_batch)
        for cut in range(chain.stages, chain.num_places, chain.stages)
        for place, kind in ((cut, RECV_F), (cut - 1, RECV_B))
        for micro_batch in range(chain.micro_batches)
    }
    actions = {device: [chain.translate(slot) for slot in slots] for device, slots in enumerate(table)}
    for action in sorted(outside):
        actions[rank_of[action.stage_index]].insert(0, action)
    lowered = _add_send_recv(actions, rank_of.__getitem__, chain.num_places)
    return {rank: [action for action in lowered[rank] if action not in outside] for rank in sorted(lowered)}
