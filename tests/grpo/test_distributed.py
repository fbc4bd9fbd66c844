"""Two processes make the updates of one, each with the whole policy or with shares of it, and checkpoints fit both."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from grpo_cases import are_equal, largest_difference
from processes import run_program
from two_process_run import resume_cases, run_cases, states_of

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PROGRAM = HERE / "two_process_run.py"

DDP = {
    "dapo": {"reward": "good_share", "settings": {"loss_type": "dapo"}},
    "grpo": {"reward": "good_share", "settings": {"loss_type": "grpo", "max_tokens_per_batch": 30}},
    "dr_grpo": {"reward": "good_share", "settings": {"loss_type": "dr_grpo", "scale_rewards": "batch", "beta": 0.05}},
    "gspo": {"reward": "good_share", "settings": {"loss_type": "gspo", "num_iterations": 2}},
    "replay": {
        "reward": "good_share",
        "settings": {"router_replay": True, "num_iterations": 2, "max_tokens_per_batch": 30},
    },
    # Two prompts a step, one for each process; those at odd places have nothing to teach.
    "one idle": {
        "reward": "good_share_of_even_prompts",
        "settings": {"generation_batch_size": 8, "max_tokens_per_batch": 20, "seed": 18},
    },
}
SPREAD = {
    "spread": {"reward": "good_share", "settings": {"expert_parallel_size": 2, "max_tokens_per_batch": 30}},
    "spread, one idle": {
        "reward": "good_share_of_even_prompts",
        "settings": {"expert_parallel_size": 2, "generation_batch_size": 8, "max_tokens_per_batch": 20, "seed": 18},
    },
    "spread, two updates": {
        "reward": "good_share",
        "settings": {"expert_parallel_size": 2, "steps_per_generation": 2, "beta": 0.05, "max_grad_norm": 0.01},
    },
    "spread, drafts": {
        "policy": "with mtp",
        "reward": "good_share",
        "settings": {"expert_parallel_size": 2, "mtp_loss_weight": 0.3, "max_grad_norm": 0.01},
    },
}
SHARDED = {
    "sharded": {"reward": "good_share", "settings": {"max_tokens_per_batch": 30, "max_grad_norm": 0.01}},
    "sharded, one idle": {
        "reward": "good_share_of_even_prompts",
        "settings": {"generation_batch_size": 8, "max_tokens_per_batch": 20, "seed": 18},
    },
    "sharded, drafts": {"policy": "with mtp", "reward": "good_share", "settings": {"mtp_loss_weight": 0.3}},
    "sharded qwen": {"policy": "qwen", "reward": "good_share", "settings": {"steps_per_generation": 2}},
    "sharded and spread": {
        "reward": "good_share",
        "settings": {"expert_parallel_size": 2, "max_tokens_per_batch": 30, "max_grad_norm": 0.01},
    },
    "sharded and spread, one idle, replay": {
        "reward": "good_share_of_even_prompts",
        "settings": {
            "router_replay": True,
            "expert_parallel_size": 2,
            "generation_batch_size": 8,
            "max_tokens_per_batch": 20,
            "seed": 18,
        },
    },
}
CASES = DDP | SPREAD | SHARDED
IDLE = ["one idle", "spread, one idle", "sharded, one idle"]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": f"{ROOT}:{HERE}", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _launch_two(directory: Path, states: dict[str, dict]) -> list[dict]:
    """What each process saved."""
    cases_path, states_path, output = (directory / name for name in ("cases.json", "states", "result"))
    cases_path.write_text(json.dumps({"DDP": DDP | SPREAD, "FSDP": SHARDED}))
    torch.save(states, states_path)
    config = ROOT / "recipes/accelerate_configs/fsdp2_ep.yaml"
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    options = ["--num_processes", "2", "--main_process_port", _free_port()]
    process = run_program([*launcher, *options, PROGRAM, cases_path, states_path, output], env=_environment())
    assert process.returncode == 0, process.stderr[-3000:]
    return [torch.load(f"{output}.{rank}") for rank in (0, 1)]


def _unspread(cases: dict[str, dict]) -> dict[str, dict]:
    """For one process, which cannot spread."""
    return {name: case | {"settings": case["settings"] | {"expert_parallel_size": 1}} for name, case in cases.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(results of one process, [results of each of two])."""
    alone = run_cases(_unspread(CASES), Accelerator(cpu=True))
    return alone, _launch_two(tmp_path_factory.mktemp("distributed"), states_of(alone))


@pytest.mark.parametrize("case", IDLE)
def test_a_process_without_anything_to_train_takes_part(runs, case):
    first, second = (run[case]["is_idle"] for run in runs[1])
    # Both ways round, so that neither end of the exchange is spared.
    assert [first, second] == [[False, True], [True, False]]


def test_shares_are_shares(runs):
    for run in runs[1]:
        assert {run[case]["share"] for case in DDP} == {1.0}
        assert all(0.5 < run[case]["share"] < 0.9 for case in SPREAD)
        assert all(0.49 < run[case]["share"] < 0.52 for case in SHARDED)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_update_of_one(runs, case):
    alone, (first, second) = runs
    assert first[case]["weights"].keys() == alone[case]["weights"].keys()
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


@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_is_the_same_to_the_bit(runs, case):
    for run in runs[1]:
        assert are_equal(run[case]["again"], run[case]["weights"])


@pytest.mark.parametrize("case", CASES)
def test_two_processes_go_on_where_one_stopped(runs, case):
    alone, shared = runs
    for run in shared:
        assert largest_difference(run[case]["resharded"], alone[case]["weights"]) < 1e-5


def test_one_process_goes_on_where_two_stopped(runs):
    alone, (first, _) = runs
    resumed = resume_cases(_unspread(CASES), states_of(first), Accelerator(cpu=True))
    for case in CASES:
        assert largest_difference(resumed[case], alone[case]["weights"]) < 1e-5, case
