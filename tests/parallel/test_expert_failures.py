"""A process of an expert group that ends or hangs ends the job within the timeout, and a restart goes on."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from expert_policy_run import NUM_STEPS, train_alone
from processes import kill_group, run_program

from r1lab.checkpoint import list_checkpoints, load_checkpoint

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "expert_training.py"
TIMEOUT = 45
"""Of an exchange, in seconds."""
START = 540
"""Seconds that two processes may take to get to work on a busy machine."""


def _environment(**more: str) -> dict[str, str]:
    path = ":".join(str(p) for p in (HERE.parent.parent, HERE, HERE.parent / "model"))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _start_by_hand(directory: Path, mode: str) -> list[subprocess.Popen]:
    """Two ranks without a launcher that would end one when it sees the other end, as on two machines."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    command = [sys.executable, str(PROGRAM), str(directory), mode, str(TIMEOUT)]
    return [
        subprocess.Popen(command, env=_environment(**shared, RANK=str(rank)), stderr=subprocess.PIPE, text=True,
                         start_new_session=True)
        for rank in range(2)
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["kill", "hang"])
def test_a_lost_rank_ends_the_others_within_the_timeout(tmp_path, mode):
    processes = _start_by_hand(tmp_path, mode)
    try:
        _, message = processes[0].communicate(timeout=START + TIMEOUT)
    finally:
        for process in processes:
            kill_group(process)
            process.stderr.close()
    failed = float((tmp_path / "failed").read_text())
    assert processes[0].returncode == 1, message[-3000:]
    assert "ExpertGroupError: rank 0: dispatch, model.layers.1.mlp failed after" in message, message[-3000:]
    line = next(line for line in message.splitlines() if "ExpertGroupError: rank 0" in line)
    assert "one of the ranks [1]" in line and "start the job again from its last checkpoint" in line
    assert time.time() - failed < TIMEOUT + 60  # the interpreter's end on a busy machine included


def test_a_job_started_again_ends_where_one_process_does(tmp_path):
    # Not torchrun's --max-restarts: torch 2.13 keeps the store of the first attempt, so that a process may read from it
    # where a dead one was to be found, and waits there until the timeout.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [PROGRAM, tmp_path, "kill", "300"]
    first, second = (run_program(command, timeout=START, env=_environment()) for _ in range(2))
    assert first.returncode != 0 and (tmp_path / "failed").exists()
    assert second.returncode == 0, second.stderr[-3000:]
    assert "rank 1 goes on after step 2" in second.stdout
    latest = list_checkpoints(tmp_path)[-1]
    checkpoint = load_checkpoint(latest, policy=(policy := train_alone(0)[0]))
    assert checkpoint.step == NUM_STEPS
    for name, tensor in train_alone(2)[0].state_dict().items():
        assert torch.allclose(policy.state_dict()[name], tensor, atol=1e-4), name
