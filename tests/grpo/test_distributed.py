"""Two processes make the update of one."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from grpo_cases import largest_difference
from processes import run_program
from two_process_run import run_cases

HERE = Path(__file__).resolve().parent
PROGRAM = HERE / "two_process_run.py"

CASES = {
    "dapo": {"reward": "good_share", "settings": {"loss_type": "dapo"}},
    "grpo": {"reward": "good_share", "settings": {"loss_type": "grpo", "max_tokens_per_batch": 30}},
    "dr_grpo": {"reward": "good_share", "settings": {"loss_type": "dr_grpo", "scale_rewards": "batch", "beta": 0.05}},
    "gspo": {"reward": "good_share", "settings": {"loss_type": "gspo", "num_iterations": 2}},
    # Two prompts a step, one for each process; those at odd places have nothing to teach.
    "one idle": {
        "reward": "good_share_of_even_prompts",
        "settings": {"generation_batch_size": 8, "max_tokens_per_batch": 20, "seed": 18},
    },
}


def _environment() -> dict[str, str]:
    root = str(HERE.parent.parent)
    return os.environ | {"PYTHONPATH": f"{root}:{HERE}", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _launch_two(directory: Path) -> list[dict]:
    """What each process saved."""
    cases, output = directory / "cases.json", directory / "result"
    cases.write_text(json.dumps(CASES))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(_free_port())]
    command = [sys.executable, *launcher, str(PROGRAM), str(cases), str(output)]
    process = run_program(command, env=_environment())
    assert process.returncode == 0, process.stderr[-3000:]
    return [torch.load(f"{output}.{rank}") for rank in (0, 1)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(results of one process, [results of each of two])."""
    return run_cases(CASES, Accelerator(cpu=True)), _launch_two(tmp_path_factory.mktemp("distributed"))


def test_a_process_without_anything_to_train_takes_part(runs):
    first, second = runs[1]
    # Both ways round, so that neither end of the exchange is spared.
    assert [first["one idle"]["is_idle"], second["one idle"]["is_idle"]] == [[False, True], [True, False]]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_update_of_one(runs, case):
    alone, (first, second) = runs
    assert largest_difference(first[case]["weights"], second[case]["weights"]) == 0.0
    assert largest_difference(first[case]["weights"], alone[case]["weights"]) < 1e-5


@pytest.mark.parametrize("case", CASES)
def test_metrics_do_not_depend_on_the_number_of_processes(runs, case):
    alone, shared = runs
    for run in shared:
        for ours, theirs in zip(run[case]["metrics"], alone[case]["metrics"], strict=True):
            assert ours.keys() == theirs.keys()
            for name in ours:
                if not name.endswith("time") and not name.startswith("time/"):
                    assert ours[name] == pytest.approx(theirs[name], abs=1e-5, nan_ok=True), name
