"""Training steps of the policy through a pipeline: DualPipe, DualPipeV, 1F1B and ZB1P by torch's pipeline runtime.

    groups = build_pipeline_groups(pp=4)                        # under torchrun
    parallelize_experts(policy, groups.expert_groups())         # if the experts are to be spread; every rank
    pipeline = PipelinedPolicy(policy, "dualpipe", (8, B, T), groups)
    optimizer = AdamW(pipeline.parameters())
    loss = pipeline.step(input_ids_MBT, labels_MBT)             # gradients are in the policy's own parameters now
    pipeline.clip_grad_norm_(1.0)
    optimizer.step(); optimizer.zero_grad(); update_routing_bias(policy, speed)

DeepSeek-V3 report, section 3.2.1. V3's experts sit on many nodes, so that a layer's all-to-all takes about as long as
its arithmetic. DualPipe hides one under the other: it pairs a forward with the backward of another micro-batch, and
each computes while the other's tokens travel (figure 4). To have such pairs at all times it feeds the pipeline from
both ends (figure 5): half of the micro-batches enter at device 0 and walk down, half enter at the last device and walk
up, so that every device has a forward of one direction beside a backward of the other. Bubbles shrink as well
(table 2; `r1lab.parallel.simulate`), for one price: each stage is kept twice, on device s and on device pp-1-s. These
are the report's 2x parameters, which it calls cheap where experts are spread widely. The two copies see different
micro-batches, so `step` adds up their gradients at its end; then both make the same update. DualPipeV keeps each stage
once: it folds one direction of twice as many stages into a V.

The tables are `r1lab.parallel.schedule`'s, the engine is torch.distributed.pipelining's `_PipelineScheduleRuntime`
(`r1lab.parallel.pipeline_runtime` says how DualPipe's two streams get through it). An overlapped slot is its
OVERLAP_F_B. torch runs the two halves of such a slot one after the other; where the experts are spread they take turns
here (`r1lab.parallel.overlap`), and where they are not there is no all-to-all to hide. torch splits B into I and W by
running parts of autograd's graph twice: linear layers really split, but the experts' fused kernel computes both shares
each time. Processes on CPUs with gloo are all that has run it.

Suffixes: M = micro-batches of a step, B = rows, T = tokens.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining.schedules import OVERLAP_F_B
from transformers.loss.loss_utils import ForCausalLMLoss

from r1lab.model import PolicyForCausalLM
from r1lab.parallel.expert_groups import check_agreement, fingerprint
from r1lab.parallel.expert_parallel import ParallelExperts
from r1lab.parallel.expert_weights import expert_parameters, grad_norm
from r1lab.parallel.overlap import OverlappedSlots
from r1lab.parallel.pipeline_groups import PipelineGroups, build_pipeline_groups
from r1lab.parallel.pipeline_runtime import Chain, Place, build_runtime
from r1lab.parallel.policy_stages import PolicyStage, layers_of_stages
from r1lab.parallel.schedule import build_schedule, check_sizes, num_stages, stages_of_device

__all__ = ["PipelineGroups", "PipelinedPolicy", "build_pipeline_groups"]

IGNORED = -100
"""The label of tokens that are not learnt, as everywhere in transformers."""


class PipelinedPolicy:
    """This process's stages of a policy, and the steps that they do together with the other processes'.

    Every process builds it from the same whole policy; afterwards only the modules of its own stages are kept and used.
    A policy kept whole can be given to `update_routing_bias` as ever: its gates count where they run.

    Args:
        policy: all processes' alike, its experts spread over `groups.expert_groups()` or whole.
        schedule: one of `r1lab.parallel.schedule.SCHEDULES`.
        shape: (M, B, T) of a step. M counts both directions of DualPipe. Each of the `groups.dp` pipelines does M
            micro-batches of its own.
        groups: from `build_pipeline_groups`.

    Raises:
        ValueError: sizes that the schedule or the policy cannot be cut into, a policy that cannot be pipelined, or
            processes that disagree about any of it; on every process, and before any step.
    """

    def __init__(
        self, policy: PolicyForCausalLM, schedule: str, shape: tuple[int, int, int], groups: PipelineGroups
    ) -> None:
        check_agreement(_signature(policy, schedule, shape, groups))
        _check(policy, schedule, shape, groups)
        self.schedule, self.shape, self.groups = schedule, tuple(shape), groups
        pp, device = groups.pp, groups.device
        layers = layers_of_stages(policy.config.num_hidden_layers, num_stages(schedule, pp))
        own = stages_of_device(schedule, pp, device)
        self.stages = nn.ModuleDict({str(stage): PolicyStage(policy, layers[stage]) for stage in own})
        """This process's, by their numbers."""
        self._chain = Chain.of(schedule, pp, shape[0])
        self._places = [self._place(place) for place in self._chain.places_of_device(device)]
        self._num_labels = 0
        table = build_schedule(schedule, pp, shape[0])
        self._runtime = build_runtime(table, self._chain, self._places, self._loss_of_micro_batch)
        if policy.has_spread_experts:
            self._runtime.register_custom_function(OVERLAP_F_B, OverlappedSlots())

    def step(self, input_ids_MBT: torch.Tensor, labels_MBT: torch.Tensor) -> torch.Tensor:
        """One training step's forwards and backwards; the loss, a scalar, on every process.

        The loss is the next-token cross-entropy, its mean over the step's labels (shifted inside, -100 ignored), plus
        the mean over micro-batches of the sequence-wise balance loss, if the config has one. With several pipelines it
        and the gradients are means over them. Gradients are whole afterwards.

        Args:
            input_ids_MBT, labels_MBT: int64. All processes of a pipeline pass the same.

        Raises:
            ValueError: another shape than the pipeline's, or no label at all.
            RuntimeError: gradients of an earlier step are still there; copies would add them up twice.
        """
        self._check_step(input_ids_MBT, labels_MBT)
        self._num_labels = int((labels_MBT[..., 1:] != IGNORED).sum())
        args, target = (), None
        for place in self._places:
            micro_batches = self._chain.micro_batches_of(place.stage_index)
            if place.is_first:
                args = (input_ids_MBT[micro_batches].flatten(0, 1),)
            if place.is_last:
                target = labels_MBT[micro_batches].flatten(0, 1)
        losses: list[torch.Tensor] = []
        self._runtime.step(*args, target=target, losses=losses, return_outputs=False)
        self._reduce_gradients()
        loss = sum((loss.detach() for loss in losses), torch.zeros((), device=self._places[0].device))
        dist.all_reduce(loss, group=self.groups.pipeline)
        return self._mean_over_pipelines(loss)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Of this process's stages, each once, for the optimizer."""
        return self.stages.parameters()

    def zero_grad(self) -> None:
        """Before the next step, unless the optimizer does it."""
        self.stages.zero_grad()

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """`torch.nn.utils.clip_grad_norm_` by the norm of the whole policy's gradient, a stage's copies counted once.

        Every process must call it. Returns the norm before clipping, a scalar.
        """
        square = grad_norm(self.stages).square() / self._chain.streams
        dist.all_reduce(square, group=self.groups.pipeline)
        with_grad = [parameter for parameter in self.parameters() if parameter.grad is not None]
        torch.nn.utils.clip_grads_with_norm_(with_grad, max_norm, square.sqrt())
        return square.sqrt()

    def _place(self, place: int) -> Place:
        module, (_, rows, columns) = self.stages[str(place % self._chain.stages)], self.shape
        inputs, outputs = (module.example((rows, columns), of_output) for of_output in (False, True))
        # Told, not found out: torch would run the stages once to see, and the gates would count it.
        return Place(module, place, self._chain, self.groups.pipeline, input_args=inputs, output_args=outputs)

    def _loss_of_micro_batch(self, output: torch.Tensor | tuple, labels_BT: torch.Tensor) -> torch.Tensor:
        """Its share of the step's loss."""
        logits, aux_loss = output if isinstance(output, tuple) else (output, None)
        loss = ForCausalLMLoss(logits, labels_BT, logits.shape[-1], num_items_in_batch=self._num_labels)
        return loss if aux_loss is None else loss + aux_loss / self.shape[0]

    def _check_step(self, input_ids_MBT: torch.Tensor, labels_MBT: torch.Tensor) -> None:
        for name, tensor in (("input_ids", input_ids_MBT), ("labels", labels_MBT)):
            if tuple(tensor.shape) != self.shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, this pipeline's is (micro-batches, rows, tokens) = "
                    f"{self.shape}; pad to it, or build a PipelinedPolicy for another"
                )
        if not (labels_MBT[..., 1:] != IGNORED).any():
            raise ValueError(f"every label behind the first token is {IGNORED}; give at least one token to learn")
        if any(parameter.grad is not None for parameter in self.parameters()):
            raise RuntimeError("gradients of an earlier step are still there; call zero_grad() first")

    @torch.no_grad()
    def _reduce_gradients(self) -> None:
        """Sums over a stage's two copies; means over pipelines, but for spread experts, which have made theirs."""
        # In the order of stages: the two devices of a pair hold the same, in opposite orders.
        ordered = nn.ModuleList(self.stages[key] for key in sorted(self.stages, key=int))
        parameters = [parameter for parameter in ordered.parameters() if parameter.grad is not None]
        if self._chain.streams == 2:
            _all_reduce([parameter.grad for parameter in parameters], self.groups.mirror)
        spread = expert_parameters(ordered)
        common = [parameter.grad for parameter in parameters if parameter not in spread]
        if self.groups.dp > 1:
            _all_reduce(common, self.groups.data)
            torch._foreach_div_(common, self.groups.dp)

    def _mean_over_pipelines(self, loss: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(loss, group=self.groups.data)
        return loss / self.groups.dp


def _all_reduce(tensors: list[torch.Tensor], group: dist.ProcessGroup) -> None:
    """All at once, and waits for all."""
    for work in [dist.all_reduce(tensor, group=group, async_op=True) for tensor in tensors]:
        work.wait()


def _signature(
    policy: PolicyForCausalLM, schedule: str, shape: tuple[int, int, int], groups: PipelineGroups
) -> dict[str, object]:
    """What all processes must agree on."""
    spread = expert_parameters(policy)
    return {
        "schedule": schedule,
        "shape": tuple(shape),
        "number of devices": groups.pp,
        "spreading of the experts": len(spread),
        "weights of the policy": {
            name: fingerprint(weight) for name, weight in policy.named_parameters() if weight not in spread
        },
    }


def _check(policy: PolicyForCausalLM, schedule: str, shape: tuple[int, int, int], groups: PipelineGroups) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)}: give (micro-batches, rows, tokens), each at least 1")
    check_sizes(schedule, groups.pp, shape[0])
    stages = num_stages(schedule, groups.pp)
    layers_of_stages(policy.config.num_hidden_layers, stages)
    if policy.mtp is not None:
        raise ValueError("a pipeline does not run the multi-token-prediction module; load the policy without with_mtp")
    if policy.config.tie_word_embeddings and stages_of_device(schedule, groups.pp, 0)[-1] != stages - 1:
        raise ValueError(
            f"tie_word_embeddings=True: {schedule} keeps the embedding and the head on different devices; untie them, "
            "or use dualpipe or dualpipev, which keep both on device 0"
        )
    own = dist.get_process_group_ranks(groups.data)
    for module in policy.modules():
        if isinstance(module, ParallelExperts):
            ranks = dist.get_process_group_ranks(module.groups.expert)
            if ranks != own or module.groups.replica is not None:
                raise ValueError(
                    f"the experts are spread over ranks {ranks}, but ranks {own} run the same stages; spread them over "
                    "groups.expert_groups()"
                )
