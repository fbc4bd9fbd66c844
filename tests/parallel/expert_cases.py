"""A mixture layer on one process and on several: the same tokens, and everything that comes out."""

import os
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from model_cases import make_config

from r1lab.model import update_routing_bias
from r1lab.model.moe import DeepseekMoE
from r1lab.parallel import all_to_all
from r1lab.parallel.expert_parallel import build_expert_groups, parallelize_experts
from r1lab.parallel.placement import Placement, plan_placement

TIMEOUT = timedelta(seconds=300)
"""Of the exchanges; long, because test machines are busy."""


@dataclass
class Case:
    """One layer, its tokens and how they are spread."""

    tokens: list[int]
    """Of each process."""
    config: dict = field(default_factory=dict)
    ep_size: int | None = None
    ranks_per_node: int | None = None
    formats: dict = field(default_factory=dict)
    favourites: tuple[int, ...] = ()
    """Experts that the routing bias makes every token choose."""
    loads: tuple[float, ...] | None = None
    num_redundant: int = 0

    def placement(self) -> Placement | None:
        if self.loads is None:
            return None
        return plan_placement(self.loads, self.ep_size or len(self.tokens), num_redundant=self.num_redundant)


LOADS = (9.0, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0, 3.0)
GROUPS = {"n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "hidden_size": 128}

CASES = {
    2: {
        "even": Case([6, 6]),
        "uneven": Case([11, 2]),
        "no tokens on rank 1": Case([7, 0]),
        "no tokens on rank 0": Case([0, 7]),
        "no tokens at all": Case([0, 0]),
        "all on rank 0's experts": Case([5, 6], favourites=(1, 2)),
        "two experts of one rank": Case([40, 40], {"num_experts_per_tok": 4, "hidden_size": 128}),
        "redundant": Case([9, 8], loads=LOADS, num_redundant=2),
        "bf16": Case([40, 30], {"hidden_size": 128}, formats={"dispatch_dtype": "bf16", "combine_dtype": "bf16"}),
        "fp8": Case([40, 30], {"hidden_size": 128}, formats={"dispatch_dtype": "fp8", "combine_dtype": "bf16"}),
        "fp8 dispatch, fp32 combine": Case([20, 30], {"hidden_size": 160}, formats={"dispatch_dtype": "fp8"}),
    },
    4: {
        "even": Case([4, 4, 4, 4]),
        "uneven": Case([9, 0, 1, 4]),
        "group limit": Case([40, 30, 20, 10], GROUPS),
        "two hops": Case([40, 30, 0, 10], GROUPS | {"topk_group": 1, "n_group": 2}, ranks_per_node=2),
        "two hops, fp8": Case([9, 8, 7, 6], GROUPS, ranks_per_node=2, formats={"dispatch_dtype": "fp8"}),
        "two groups": Case([5, 4, 6, 3], ep_size=2),
        "two groups, redundant": Case([5, 4, 6, 3], ep_size=2, loads=LOADS, num_redundant=2),
    },
}  # fmt: skip


def make_layer(case: Case) -> DeepseekMoE:
    config = make_config(**case.config)
    layer = DeepseekMoE(config).train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        for expert in case.favourites:
            layer.gate.e_score_correction_bias[expert] = 10.0
    return layer


def make_tokens(case: Case) -> tuple[torch.Tensor, torch.Tensor]:
    """x and the gradient of the loss with respect to y, [all tokens, D] each."""
    hidden = make_config(**case.config).hidden_size
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(sum(case.tokens), hidden, generator=generator) for _ in range(2))


def run_layer(layer: DeepseekMoE, x: torch.Tensor, grad_y: torch.Tensor) -> dict[str, torch.Tensor]:
    """One forward and backward of sum(y * grad_y): y, the gradients, the load and the routing."""
    x = x.clone().requires_grad_()
    y, _ = layer(x.unsqueeze(0))
    with _counting("backward"):
        (y.squeeze(0) * grad_y).sum().backward()
    results = {name: parameter.grad for name, parameter in layer.named_parameters()}
    with torch.no_grad():
        topk_idx = layer.gate(x)[1]
    load = layer.gate.expert_load_E.clone()
    return results | {"y": y.detach().squeeze(0), "x": x.grad, "load": load, "topk_idx": topk_idx}


def run_case_alone(case: Case) -> dict[str, torch.Tensor]:
    """The results of one process with all tokens, and the routing bias after an update."""
    layer = make_layer(case)
    results = run_layer(layer, *make_tokens(case))
    update_routing_bias(layer, speed=0.01)
    return results | {"bias": layer.gate.e_score_correction_bias}


def run_case(case: Case) -> dict[str, object]:
    """The results of this process: its tokens' own, and the weights' gradients as they come out of the layer."""
    groups = build_expert_groups(
        case.ep_size or dist.get_world_size(), ranks_per_node=case.ranks_per_node, timeout=TIMEOUT
    )
    layer, placement = make_layer(case), case.placement()
    parallelize_experts(layer, groups, placements=None if placement is None else [placement], **case.formats)
    x, grad_y = (t.split(case.tokens)[dist.get_rank()] for t in make_tokens(case))
    bytes_sent.clear()
    results = run_layer(layer, x, grad_y)
    results["bytes"] = dict(bytes_sent)
    update_routing_bias(layer, speed=0.01)
    results["bias"] = layer.gate.e_score_correction_bias
    results["experts"] = layer.experts.placement.experts_of_rank(groups.ep_rank)
    return results


bytes_sent: Counter = Counter()
"""(forward or backward, ranks of the group) -> bytes that left this process."""

_phase = ["forward"]


class _counting:
    def __init__(self, phase: str) -> None:
        self.phase = phase

    def __enter__(self) -> None:
        _phase.append(self.phase)

    def __exit__(self, *_) -> None:
        _phase.pop()


def count_bytes() -> None:
    """Lets every all-to-all of this process be counted in `bytes_sent`, whoever calls it."""
    original = dist.all_to_all_single

    def counted(output, input, output_split_sizes=None, input_split_sizes=None, group=None, async_op=False):
        size = dist.get_world_size(group)
        rows = input_split_sizes or [len(input) // size] * size
        row_bytes = input[:1].numel() * input.element_size() if len(input) else 0
        remote = sum(n for member, n in enumerate(rows) if member != dist.get_rank(group))
        bytes_sent[_phase[-1], tuple(dist.get_process_group_ranks(group))] += remote * row_bytes
        return original(output, input, output_split_sizes, input_split_sizes, group, async_op)

    all_to_all.dist.all_to_all_single = counted


def run_cases(rank: int, world_size: int, directory: str) -> None:
    """A process that runs its world's cases and saves their results."""
    torch.set_num_threads(1)
    init = f"file://{directory}/init"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world_size, timeout=TIMEOUT)
    count_bytes()
    results = {name: run_case(case) for name, case in CASES[world_size].items()}
    torch.save(results, os.path.join(directory, f"{rank}.pt"))
    dist.destroy_process_group()
