"""Whole GRPO steps on rollouts of a vLLM server; the stub generates with the weights that were pushed to it."""

import math
import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from grpo_cases import are_equal, largest_difference, make_policy, make_trainer, weights_of
from processes import free_port, run_program
from vllm_run import connect, train_unevenly
from vllm_stub import StubServer, stand_ins

HERE = Path(__file__).resolve().parent
RATIO = "sampling/importance_sampling_ratio/"
DIFFERENCE = "sampling/sampling_logp_difference/"


@pytest.fixture
def server():
    with stand_ins(), StubServer(make_policy(seed=9)) as stub:
        yield stub


def train(server=None, **changes):
    """Two steps -> (weights, metrics of each)."""
    policy = make_policy()
    if server is None:
        trainer = make_trainer(policy, **changes)
    else:
        trainer = make_trainer(policy, vllm=connect(server.url, policy), use_vllm=True, **changes)
    metrics = [trainer.step().metrics for _ in range(2)]
    return weights_of(policy), metrics


def distance(ours, theirs) -> float:
    """Between two trained policies, as a share of how far the second has come. (The largest difference of a weight says
    little: Adam makes a step of the full size out of a gradient that is rounding alone.)"""
    flat, other, start = (
        torch.cat([w.flatten() for w in one.values()]) for one in (ours, theirs, weights_of(make_policy()))
    )
    return ((flat - other).norm() / (other - start).norm()).item()


def less_likely(by: float):
    """Makes the stub say that every third request's tokens were less likely than they are, by so many nats."""

    def change(choices, body):
        if body["seed"] // 4 % 3 == 0:
            for choice in choices:
                logprobs = choice["logprobs"]
                logprobs["token_logprobs"] = [logp - by for logp in logprobs["token_logprobs"]]
                logprobs["top_logprobs"] = [None] * len(logprobs["tokens"])
        return choices

    return change


@pytest.mark.parametrize(
    "changes", [{}, {"num_iterations": 2, "steps_per_generation": 2}], ids=["once", "four updates"]
)
def test_a_server_with_the_policys_own_logps_trains_as_the_native_engine(server, changes):
    weights, metrics = train(server, **changes)
    expected, native_metrics = train(**changes)
    assert distance(weights, expected) < 1e-3
    for ours, theirs in zip(metrics, native_metrics, strict=True):
        assert ours[DIFFERENCE + "max"] < 1e-4
        assert [ours[RATIO + name] for name in ("min", "mean", "max")] == pytest.approx([1, 1, 1], abs=1e-4)
        assert set(ours) - set(theirs) == {RATIO + name for name in ("min", "mean", "max")}
        assert ours["reward"] == theirs["reward"]


def test_weights_are_pushed_once_a_step(server):
    policy = make_policy()
    trainer = make_trainer(policy, vllm=connect(server.url, policy), use_vllm=True, dynamic_sampling=True)
    for step in (1, 2):
        before = weights_of(policy)
        trainer.step()
        assert len(server.bodies("/update_weights")) == step
        pushed = weights_of(server.policy)
        assert are_equal(before, pushed)
    trainer.load_state_dict(trainer.state_dict())
    trainer.step()
    assert len(server.bodies("/update_weights")) == 3


@pytest.mark.parametrize("mode", ["sequence_mask", "token_truncate"])
def test_logps_that_are_off_are_corrected_for(server, mode):
    server.change = less_likely(by=0.5)
    weights, metrics = train(server, vllm_importance_sampling_mode=mode)
    uncorrected, plain_metrics = train(server, vllm_importance_sampling_correction=False)
    native, _ = train()
    assert metrics[0][DIFFERENCE + "max"] == pytest.approx(0.5, abs=1e-4) == plain_metrics[0][DIFFERENCE + "max"]
    assert 0 < metrics[0][DIFFERENCE + "mean"] < 0.5
    low, high = {"sequence_mask": (0, 1), "token_truncate": (1, math.exp(0.5))}[mode]
    assert metrics[0][RATIO + "min"] == pytest.approx(low, abs=1e-4)
    assert metrics[0][RATIO + "max"] == pytest.approx(high, abs=1e-3)
    assert low < metrics[0][RATIO + "mean"] < high
    assert RATIO + "mean" not in plain_metrics[0]
    assert distance(uncorrected, native) < 1e-6
    assert distance(weights, native) > 0.05


def test_logps_that_vllm_did_not_give_do_not_stop_training(server):
    def hide(choices, body):
        for choice in choices:
            choice["logprobs"] |= {"token_logprobs": [float("nan")] * len(choice["token_ids"])}
            choice["logprobs"] |= {"top_logprobs": [None] * len(choice["token_ids"])}
        return choices

    server.change = hide
    weights, metrics = train(server)
    assert distance(weights, train()[0]) < 1e-6
    assert [metrics[0][RATIO + name] for name in ("min", "max")] == [1, 1]


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory):
    """(one process's results, [each of two's], the server's log of the two)."""
    output = tmp_path_factory.mktemp("vllm") / "result"
    with stand_ins(), StubServer(make_policy(seed=9)) as stub:
        alone = train_unevenly(stub.url, Accelerator(cpu=True))
    with StubServer(make_policy(seed=9)) as stub:
        paths = os.pathsep.join(map(str, (HERE.parent.parent, HERE.parent, HERE)))
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
        process = run_program([sys.executable, *launcher, HERE / "vllm_run.py", stub.url, output], env=environment)
        assert process.returncode == 0, process.stderr[-3000:]
    return alone, [torch.load(f"{output}.{rank}") for rank in (0, 1)], stub.log


def test_two_processes_make_the_update_of_one(shared_run):
    alone, (first, second), _ = shared_run
    assert largest_difference(first["weights"], second["weights"]) == 0.0
    assert distance(first["weights"], alone["weights"]) < 1e-3
    for one in (first, second):
        assert one["results"] == pytest.approx(alone["results"], nan_ok=True)
    assert 0 < alone["results"]["mean_length"] <= 4
    for name in first["metrics"]:
        if not name.endswith("time") and not name.startswith("time/"):
            assert first["metrics"][name] == pytest.approx(alone["metrics"][name], abs=1e-5, nan_ok=True), name


def test_a_process_without_prompts_takes_part(shared_run):
    alone, both, _ = shared_run
    assert [sum(counts) for counts in zip(*(one["rounds"] for one in both), strict=True)] == alone["rounds"]
    assert 0 in both[1]["rounds"]


def test_only_the_main_process_talks_to_the_server(shared_run):
    paths = [path for path, _ in shared_run[2]]
    assert all(paths.count(path) == 1 for path in ("/v1/models", "/init_weight_transfer_engine", "/update_weights"))


def test_what_goes_wrong_on_the_main_process_is_raised_on_all(shared_run):
    alone, both, _ = shared_run
    assert "token id 99" in alone["error"]
    assert ["prompt 1 has token id 99" in one["error"] for one in both] == [True, True]
