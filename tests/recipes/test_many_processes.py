"""The recipe over processes and machines: the run of one process, and checkpoints that any number goes on from."""

import json
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType
from processes import run_program
from r1_zero import run_command
from recipe_runs import ROOT, SHORT_RUN, recipe_environment
from safetensors.torch import load_file
from transformers import DeepseekV3ForCausalLM

from r1lab.config import GRPOConfig
from r1lab.trace import load_run

HERE = Path(__file__).resolve().parent
CONFIGS = ROOT / "recipes" / "accelerate_configs"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _launch_machine(rank: int, directory: Path, port: int) -> subprocess.CompletedProcess:
    """One of two machines, with one process."""
    options = {"num_processes": 2, "machine_rank": rank, "main_process_ip": "127.0.0.1", "main_process_port": port}
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", CONFIGS / "multi_node.yaml"]
    return run_program([*launcher, *flags, HERE / "machine_run.py", directory], env=recipe_environment())


def _weights(run_dir: Path, step: int) -> dict:
    return load_file(run_dir / f"checkpoints/step_{step:05d}/model.safetensors")


def _largest_difference(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max((first[name] - second[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def run_of_one(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one") / "run"
    run_command([*SHORT_RUN, "--output_dir", str(run_dir)])
    return run_dir


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """(the directory, what the machines printed)."""
    directory, port = tmp_path_factory.mktemp("two"), _free_port()
    with ThreadPoolExecutor() as pool:
        processes = list(pool.map(lambda rank: _launch_machine(rank, directory, port), range(2)))
    assert [process.returncode for process in processes] == [0, 0], [process.stderr[-3000:] for process in processes]
    return directory, processes


@pytest.fixture(scope="module")
def run_of_two_machines(machines):
    return machines[0] / "run"


def test_two_machines_run_what_one_process_runs(run_of_one, run_of_two_machines):
    for step in (1, 2):
        assert _largest_difference(_weights(run_of_two_machines, step), _weights(run_of_one, step)) < 1e-5
    ours, theirs = (load_run(run).metrics for run in (run_of_two_machines, run_of_one))
    for name in ("reward", "loss", "grad_norm", "entropy", "moe/max_vio", "completions/mean_length", "num_tokens"):
        assert ours[name].tolist() == pytest.approx(theirs[name].tolist(), abs=1e-5, nan_ok=True), name
    assert (ours["time/tokens_per_second_per_process"][1:] > 0).all()
    # Problems shared out among processes: before any update the very same results.
    ours, theirs = (json.loads((run / "results.json").read_text())["base"] for run in (run_of_two_machines, run_of_one))
    assert ours == theirs and ours
    assert len(load_run(run_of_two_machines).completions) == len(load_run(run_of_one).completions)


def test_its_checkpoint_is_a_whole_policy(run_of_two_machines):
    model = DeepseekV3ForCausalLM.from_pretrained(run_of_two_machines / "checkpoints/step_00002")
    assert model.model.layers[1].mlp.experts.gate_up_proj.shape[0] == 8


def test_one_process_goes_on_where_two_machines_stopped(run_of_one, run_of_two_machines, tmp_path):
    start = run_of_two_machines / "checkpoints/step_00001"
    run_command([*SHORT_RUN, "--output_dir", str(tmp_path / "run"), "--resume_from_checkpoint", str(start)])
    assert _largest_difference(_weights(tmp_path / "run", 2), _weights(run_of_one, 2)) < 1e-5


def test_a_size_that_does_not_fit_ends_all_processes_with_one_line(machines):
    directory, processes = machines
    lines = [line for process in processes for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: expert_parallel_size=3 does not divide the 2 processes of this job; launch a multiple of 3 "
        "(accelerate launch --num_processes), or change it"
    ]
    assert [f"process {i} would end with 1" in process.stdout for i, process in enumerate(processes)] == [True, True]
    assert not (directory / "refused").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"expert_parallel_size": 0}, "expert_parallel_size=0: must be at least 1"),
        ({"expert_dispatch_dtype": "fp4"}, "expert_dispatch_dtype='fp4': use one of native, bf16, fp8"),
        ({"expert_parallel_size": 2, "fp8": True}, "expert_parallel_size=2 spreads them"),
    ],
)
def test_settings_that_nobody_could_follow_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**settings)


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "fsdp2_ep", "multi_node"])
def test_accelerate_reads_the_configs(name):
    path = CONFIGS / f"{name}.yaml"
    config = load_config_from_file(str(path))
    first = path.read_text().splitlines()[1]
    assert first.startswith("#   accelerate launch --config_file recipes/accelerate_configs/") and path.name in first
    assert config.num_processes == 8 * config.num_machines
    if name == "ddp":
        assert config.distributed_type == DistributedType.MULTI_GPU
    else:
        assert config.distributed_type == DistributedType.FSDP and config.fsdp_config["fsdp_version"] == 2
        assert config.fsdp_config == yaml.safe_load((CONFIGS / "fsdp2.yaml").read_text())["fsdp_config"]
