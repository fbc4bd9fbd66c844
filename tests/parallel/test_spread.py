"""What the processes cannot do is refused, with the fix; tests/grpo/test_distributed.py trains what they can."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from model_cases import make_policy

from r1lab.parallel.spread import ParallelSettingsError, check_processes, spread_policy


def make_processes(count: int, kind: DistributedType = DistributedType.MULTI_CPU, is_fsdp2: bool = False):
    return SimpleNamespace(distributed_type=kind, num_processes=count, is_fsdp2=is_fsdp2, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("processes", "per_node", "size", "message"),
    [
        (make_processes(8), 8, 3, "expert_parallel_size=3 does not divide the 8 processes"),
        (make_processes(8), 8, 16, "expert_parallel_size=16 does not divide the 8 processes"),
        (make_processes(1), 1, 2, "expert_parallel_size=2 does not divide the 1 processes"),
        (make_processes(12), 6, 4, None),
        (make_processes(12), 6, 12, None),
        (make_processes(24), 8, 12, "expert_parallel_size=12 spans nodes of 8 processes"),
        (make_processes(8, DistributedType.FSDP), 8, 1, "set fsdp_version: 2"),
        (make_processes(8, DistributedType.FSDP, is_fsdp2=True), 8, 1, None),
        (make_processes(8, DistributedType.DEEPSPEED), 8, 1, "distributed_type DEEPSPEED is not supported"),
    ],
)
def test_processes_are_checked_before_a_policy_is_loaded(monkeypatch, processes, per_node, size, message):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(per_node))
    if message is None:
        check_processes(processes, size)
    else:
        with pytest.raises(ParallelSettingsError, match=message):
            check_processes(processes, size)


@pytest.mark.parametrize(
    ("changes", "size", "message"),
    [
        ({"n_routed_experts": 6, "n_group": 1, "topk_group": 1}, 4, "does not divide the 6 routed experts"),
        ({"first_k_dense_replace": 2}, 2, "expert_parallel_size=2: only DeepSeek-V3 policies have experts"),
    ],
)
def test_a_policy_whose_experts_cannot_be_spread_stays_as_it_is(monkeypatch, changes, size, message):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    policy = make_policy(**changes)
    with pytest.raises(ParallelSettingsError, match=message):
        spread_policy(policy, make_processes(4), size)
    assert not policy.has_spread_experts and all(p.requires_grad for p in policy.parameters())


def test_one_process_trains_the_policy_itself():
    policy = make_policy()
    spread = spread_policy(policy, Accelerator(cpu=True))
    assert spread.whole is policy and spread.trained is policy
