"""A policy in a pipeline learns what it learns on one process, by the actions of the table; bad sizes are refused."""

import pytest
import torch
from pipeline_run import CASES, Case, run_pipelines, train_alone

from r1lab.parallel.policy_stages import layers_of_stages
from r1lab.parallel.schedule import Slot, build_schedule, num_stages, stages_of_device

WORLD_SIZE = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("pipelines")
    torch.multiprocessing.spawn(run_pipelines, (WORLD_SIZE, str(directory)), nprocs=WORLD_SIZE)
    return [torch.load(directory / f"{rank}.pt") for rank in range(WORLD_SIZE)]


@pytest.fixture(scope="module")
def alone():
    """Case -> the results of one process, worked out once."""
    return {name: train_alone(case, WORLD_SIZE) for name, case in CASES.items()}


def place_of(case: Case, rank: int) -> tuple[int, int, int]:
    """(device, pipeline, pipelines) of a rank."""
    num_pipelines = WORLD_SIZE // case.pp
    return *divmod(rank, num_pipelines), num_pipelines


def names_of(case: Case, device: int, names: list[str]) -> set[str]:
    """Of the policy's parameters, those of a device's stages."""
    stages, own = num_stages(case.schedule, case.pp), stages_of_device(case.schedule, case.pp, device)
    layers = layers_of_stages(case.policy().config.num_hidden_layers, stages)
    prefixes = [f"model.layers.{layer}." for stage in own for layer in layers[stage]]
    prefixes += ["model.embed_tokens."] * (0 in own) + ["model.norm.", "lm_head."] * (stages - 1 in own)
    return {name for name in names if name.startswith(tuple(prefixes))}


@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_are_those_of_one_process(runs, alone, name):
    case = CASES[name]
    for rank, run in enumerate(runs):
        device, pipeline, num_pipelines = place_of(case, rank)
        assert run[name]["loss"] == pytest.approx(alone[name]["loss"], rel=1e-5)
        assert run[name]["norm"] == pytest.approx(alone[name]["norm"], rel=1e-4)
        assert len(run[name]["gradients"]) == case.steps
        for gradients, expected in zip(run[name]["gradients"], alone[name]["gradients"]):
            assert gradients.keys() == names_of(case, device, list(expected))
            for parameter, gradient in gradients.items():
                whole = expected[parameter]
                if case.spread and ".mlp.experts." in parameter:
                    whole = whole.chunk(num_pipelines)[pipeline]
                assert torch.allclose(gradient, whole, rtol=1e-4, atol=1e-5), (rank, parameter)


@pytest.mark.parametrize("name", CASES)
def test_copies_of_a_stage_have_bitwise_equal_gradients(runs, name):
    case = CASES[name]
    for rank, run in enumerate(runs):
        device, pipeline, num_pipelines = place_of(case, rank)
        if case.schedule == "dualpipe":
            other = runs[(case.pp - 1 - device) * num_pipelines + pipeline][name]
            for gradients, others in zip(run[name]["gradients"], other["gradients"]):
                assert gradients.keys() == others.keys()
                assert all(torch.equal(gradient, others[parameter]) for parameter, gradient in gradients.items())


@pytest.mark.parametrize("name", CASES)
def test_gates_count_every_token_once(runs, alone, name):
    for step, expected in enumerate(alone[name]["loads"]):
        assert torch.equal(sum(run[name]["loads"][step] for run in runs), expected)
        assert expected.sum() > 0


def runtime_name(case: Case, slot: Slot) -> str:
    """A slot as torch prints it; DualPipe's second stream is numbered behind the first one's stages."""
    names = []
    for kind, stage, micro_batch in slot:
        half = case.shape[0] // 2
        if case.schedule == "dualpipe" and micro_batch >= half:
            stage, micro_batch = stage + case.pp, micro_batch - half
        names.append(f"{stage}{kind}{micro_batch}")
    return names[0] if len(names) == 1 else f"({';'.join(names)})OVERLAP_F_B"


@pytest.mark.parametrize("name", CASES)
def test_the_runtime_runs_the_table_in_order(runs, name):
    case = CASES[name]
    table = build_schedule(case.schedule, case.pp, case.shape[0])
    for rank, run in enumerate(runs):
        expected = [runtime_name(case, slot) for slot in table[place_of(case, rank)[0]]]
        for actions in run[name]["actions"]:
            assert [action for action in actions if "SEND" not in action and "RECV" not in action] == expected
    if case.schedule.startswith("dualpipe"):
        assert any("OVERLAP_F_B" in action for run in runs for action in run[name]["actions"][0])


def test_a_backward_goes_on_while_the_overlapped_forwards_tokens_travel(runs):
    assert [run["told"] for run in runs] == [True, True, False, False]


@pytest.mark.parametrize(
    ("case", "parts"),
    {
        "3 of 4 processes": ["pp=3", "4 processes"],
        "layers": ["8 stages for 4 layers", "fewer devices"],
        "name": ["schedule='gpipe'", "dualpipev"],
        "few micro-batches": ["num_micro_batches=6", "2 x pp = 8"],
        "odd micro-batches": ["num_micro_batches=9", "10"],
        "shape": ["shape=(8, 5)"],
        "mtp": ["with_mtp"],
        "tied": ["tie_word_embeddings", "zb1p", "dualpipev"],
        "spread elsewhere": ["spread over ranks", "groups.expert_groups()"],
        "other weights": ["weights of the policy", "ranks [2, 3]"],
        "other shapes": ["shape", "ranks [3]"],
        "other ids": ["input_ids", "(1, 1, 5)", "(2, 1, 5)"],
        "other labels": ["labels", "(2, 1, 4)"],
        "nothing to learn": ["-100"],
        "old gradients": ["RuntimeError", "zero_grad()"],
    }.items(),
)
def test_bad_input_is_refused_on_every_process(runs, case, parts):
    for run in runs:
        for part in parts:
            assert part in run["refusals"][case]


@pytest.mark.parametrize(
    ("num_layers", "num_stages", "sizes"), [(8, 4, [2, 2, 2, 2]), (9, 4, [3, 2, 2, 2]), (3, 3, [1, 1, 1]), (5, 1, [5])]
)
def test_layers_are_spread_evenly_and_once(num_layers, num_stages, sizes):
    layers = layers_of_stages(num_layers, num_stages)
    assert [len(part) for part in layers] == sizes
    assert [layer for part in layers for layer in part] == list(range(num_layers))
