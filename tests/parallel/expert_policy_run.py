"""Training steps of a policy whose experts are spread over the processes, and the same on one process."""

import gc
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from expert_cases import TIMEOUT
from model_cases import make_ids, make_policy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from r1lab.grpo.logps import LogpsModel
from r1lab.model import PolicyForCausalLM, update_routing_bias
from r1lab.parallel.expert_parallel import (
    build_expert_groups,
    clip_grad_norm_,
    expert_parameters,
    full_state_dict,
    load_full_state_dict,
    parallelize_experts,
)
from r1lab.parallel.placement import plan_placement

MAX_NORM = 0.5
NUM_STEPS = 3


def make_batch(step: int, rank: int) -> torch.Tensor:
    """Ids [rows, 7]; ranks differ in their rows."""
    return make_ids(1 + 2 * rank, 7, seed=10 * step + rank)


def make_optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def train_alone(world_size: int) -> tuple[PolicyForCausalLM, list[float]]:
    """The policy after the steps of `world_size` processes, made by one; and the gradients' norms."""
    policy = make_policy().train()
    optimizer, norms = make_optimizer(policy.parameters()), []
    for step in range(NUM_STEPS):
        for rank in range(world_size):
            ids = make_batch(step, rank)
            (policy(ids, labels=ids).loss / world_size).backward()
        norms.append(nn.utils.clip_grad_norm_(policy.parameters(), MAX_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        update_routing_bias(policy, speed=0.05)
    return policy, norms


def train(policy: nn.Module, model: nn.Module) -> dict[str, object]:
    """This process's part of the same; `model` is the policy wrapped."""
    optimizer, norms, metrics = make_optimizer(model.parameters()), [], []
    for step in range(NUM_STEPS):
        ids = make_batch(step, dist.get_rank())
        model(ids, labels=ids).loss.backward()
        norms.append(clip_grad_norm_(model, MAX_NORM).item())
        optimizer.step()
        optimizer.zero_grad()
        metrics.append(update_routing_bias(policy, speed=0.05))
    state = {name: tensor.clone() for name, tensor in full_state_dict(policy).items()}
    return {"state": state, "norms": norms, "metrics": metrics}


def wrap_ddp(policy: nn.Module) -> nn.Module:
    return DistributedDataParallel(policy)


def wrap_fsdp(policy: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    experts = expert_parameters(policy)
    for layer in policy.model.layers:
        fully_shard(layer, mesh=mesh, ignored_params=experts)
    return fully_shard(policy, mesh=mesh, ignored_params=experts)


def wrap_checkpointed(policy: nn.Module) -> nn.Module:
    """The backward computes each layer, and so its exchanges, a second time."""
    policy.gradient_checkpointing_enable({"use_reentrant": False})
    return DistributedDataParallel(policy)


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "ddp": wrap_ddp,
    "fsdp2": wrap_fsdp,
    "checkpointed": wrap_checkpointed,
}


def message_of(call: Callable[[], object]) -> str:
    """Of the ValueError that the call must raise."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


def refusals(rank: int) -> dict[str, str]:
    """Bad input -> its message."""
    groups = build_expert_groups(2, timeout=TIMEOUT)
    spread = parallelize_experts(make_policy(), groups)
    short = plan_placement([1.0] * 8, 2)
    placements = {"placements": [short, short]}
    straddling = build_expert_groups(2, ranks_per_node=1, timeout=TIMEOUT)
    limited = {"n_routed_experts": 12, "n_group": 3, "topk_group": 2}
    return {
        "3 of 2 processes": message_of(lambda: build_expert_groups(3)),
        "2 ranks in nodes of 3": message_of(lambda: build_expert_groups(2, ranks_per_node=3)),
        "9 experts on 2": message_of(lambda: parallelize_experts(make_policy(n_routed_experts=9), groups)),
        "dense": message_of(lambda: parallelize_experts(make_policy(first_k_dense_replace=2), groups)),
        "twice": message_of(lambda: parallelize_experts(spread, groups)),
        "format": message_of(lambda: parallelize_experts(make_policy(), groups, dispatch_dtype="fp4")),
        "fp8 combine": message_of(lambda: parallelize_experts(make_policy(), groups, combine_dtype="fp8")),
        "two placements": message_of(lambda: parallelize_experts(make_policy(), groups, **placements)),
        "other weights": message_of(lambda: parallelize_experts(make_policy(seed=rank), groups)),
        "other formats": message_of(
            lambda: parallelize_experts(make_policy(), groups, dispatch_dtype="bf16" if rank else "native")
        ),
        "straddling": message_of(lambda: parallelize_experts(make_policy(**limited), straddling)),
        "saved": message_of(lambda: spread.save_pretrained("never")),
    }


def names_hidden_from_ddp(policy: nn.Module) -> list[str]:
    return sorted(LogpsModel(policy)._ddp_params_and_buffers_to_ignore)


def run_policies(rank: int, world_size: int, directory: str) -> None:
    """A process of the tests; saves its results."""
    torch.set_num_threads(1)
    init = f"file://{directory}/init"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world_size, timeout=TIMEOUT)
    results: dict[str, object] = {"refusals": refusals(rank)}
    for name, wrap in WRAPPERS.items():
        policy = parallelize_experts(make_policy().train(), build_expert_groups(2, timeout=TIMEOUT))
        model = wrap(policy)
        results[name] = train(policy, model)
        if name == "ddp":
            results["hidden"] = names_hidden_from_ddp(policy)
            policy.save_pretrained(os.path.join(directory, "saved"), state_dict=results[name]["state"])
            load_full_state_dict(policy, make_policy().state_dict())
            results["loaded"] = full_state_dict(policy)
        del model
        gc.collect()  # DDP before its process group: see tests/model/test_routing_balance.py
    torch.save(results, os.path.join(directory, f"{rank}.pt"))
    dist.destroy_process_group()
