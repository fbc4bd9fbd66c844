"""A policy with spread experts under DDP and FSDP2 trains as it does on one process; bad input is refused."""

import pytest
import torch
from expert_policy_run import WRAPPERS, run_policies, train_alone
from model_cases import make_policy

from r1lab.model import PolicyForCausalLM

WORLD_SIZE = 2


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("policies")
    torch.multiprocessing.spawn(run_policies, (WORLD_SIZE, str(path)), nprocs=WORLD_SIZE)
    return path


@pytest.fixture(scope="module")
def runs(directory):
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD_SIZE)]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_steps_are_those_of_one_process(runs, wrapper):
    alone, norms = train_alone(WORLD_SIZE)
    assert norms[0] > 0.5, "nothing is clipped"
    for run in runs:
        assert run[wrapper]["norms"] == pytest.approx(norms, rel=1e-4)
        assert run[wrapper]["metrics"] == runs[0][wrapper]["metrics"]
        state, expected = run[wrapper]["state"], alone.state_dict()
        assert state.keys() == expected.keys()
        for name, tensor in state.items():
            assert torch.allclose(tensor, expected[name], atol=1e-4), name  # Adam divides by small second moments


def test_the_gathered_policy_is_saved_as_one(runs, directory):
    ids = torch.tensor([[5, 9, 2, 33]])
    alone, _ = train_alone(WORLD_SIZE)
    loaded = PolicyForCausalLM.from_pretrained(directory / "saved")
    assert torch.allclose(loaded(ids).logits, alone.eval()(ids).logits, atol=1e-3)


def test_a_whole_state_dict_loads_into_spread_experts(runs):
    for run in runs:
        for name, tensor in make_policy().state_dict().items():
            assert torch.equal(run["loaded"][name], tensor), name


def test_ddp_leaves_the_experts_alone_in_any_wrapper(runs):
    assert runs[0]["hidden"] == [
        "policy.model.layers.1.mlp.experts.down_shard",
        "policy.model.layers.1.mlp.experts.gate_up_shard",
        "policy.model.layers.1.mlp.gate.expert_load_E",
    ]


@pytest.mark.parametrize(
    ("case", "parts"),
    {
        "3 of 2 processes": ["ep_size=3", "2 processes"],
        "2 ranks in nodes of 3": ["ranks_per_node=3", "ep_size=2"],
        "9 experts on 2": ["9 routed experts", "2 processes"],
        "dense": ["no routed experts"],
        "twice": ["spread already"],
        "format": ["dispatch_dtype='fp4'", "fp8"],
        "fp8 combine": ["combine_dtype='fp8'"],
        "two placements": ["2 placements for 1 layers"],
        "other weights": ["weights of the experts", "ranks [1]", "same checkpoint"],
        "other formats": ["dispatch_dtype", "ranks [1]"],
        "straddling": ["n_group=3", "2 nodes", "topk_group=2"],
        "saved": ["full_state_dict"],
    }.items(),
)
def test_bad_input_is_refused_on_every_process(runs, case, parts):
    for run in runs:
        for part in parts:
            assert part in run["refusals"][case]
