"""A short training with spread experts, as a program: python expert_training.py DIRECTORY kill|hang TIMEOUT

It is started with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, by torchrun or by hand. At step 2 rank 1 is killed, or
hangs; started again, the program goes on from the last checkpoint to the end.
"""

import os
import signal
import sys
import time
from datetime import timedelta

import torch
import torch.distributed as dist
from expert_policy_run import MAX_NORM, NUM_STEPS, make_batch, make_optimizer
from model_cases import make_policy

from r1lab.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from r1lab.model import update_routing_bias
from r1lab.parallel.expert_parallel import (
    build_expert_groups,
    clip_grad_norm_,
    full_state_dict,
    parallelize_experts,
)

FATAL_STEP = 2


def misbehave(mode: str, directory: str) -> None:
    with open(os.path.join(directory, "failed"), "w") as file:
        file.write(str(time.time()))
    if mode == "hang":
        time.sleep(600)
    os.kill(os.getpid(), signal.SIGKILL)


def train(directory: str, mode: str, timeout: timedelta) -> None:
    policy, start, states = make_policy(), 0, None
    checkpoints = list_checkpoints(directory)
    if checkpoints:
        checkpoint = load_checkpoint(checkpoints[-1], policy=policy)
        start, states = checkpoint.step, checkpoint.state["optimizers"]
        print(f"rank {dist.get_rank()} goes on after step {start}", flush=True)
    parallelize_experts(policy.train(), build_expert_groups(dist.get_world_size(), timeout=timeout))
    # As in the recipes; the buffers are the same everywhere, and the first to meet a lost rank would be DDP.
    model = torch.nn.parallel.DistributedDataParallel(policy, broadcast_buffers=False)
    optimizer = make_optimizer(model.parameters())
    if states is not None:
        optimizer.load_state_dict(states[dist.get_rank()])
    for step in range(start, NUM_STEPS):
        if step == FATAL_STEP and dist.get_rank() == 1 and not checkpoints:
            misbehave(mode, directory)
        ids = make_batch(step, dist.get_rank())
        model(ids, labels=ids).loss.backward()
        clip_grad_norm_(model, MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        update_routing_bias(policy, speed=0.05)
        save(directory, step + 1, policy, optimizer)


def save(directory: str, step: int, policy, optimizer) -> None:
    """Whole weights, and each process's own optimizer state."""
    weights = full_state_dict(policy)
    states = [None] * dist.get_world_size()
    dist.all_gather_object(states, optimizer.state_dict())
    if dist.get_rank() == 0:
        save_checkpoint(directory, step=step, policy=policy, policy_state_dict=weights, state={"optimizers": states})
    dist.barrier()


if __name__ == "__main__":
    torch.set_num_threads(1)
    limit = timedelta(seconds=float(sys.argv[3]))
    dist.init_process_group("gloo", timeout=timedelta(seconds=300))
    train(sys.argv[1], sys.argv[2], limit)
    dist.destroy_process_group()
