"""The benchmarks' functions at tiny sizes: that they run and compare like with like, not how fast."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

import bench_grpo  # noqa: E402
import bench_rollout  # noqa: E402
import bench_train  # noqa: E402
import sides  # noqa: E402
from models import decode_flops, load_pair  # noqa: E402


@pytest.fixture(scope="module")
def pair():
    return load_pair()


def test_both_sides_of_a_rollout_sample_as_many_tokens(pair):
    ours, theirs = pair
    completions = bench_rollout.our_side(ours, 3, 4, 5)()
    assert [len(c.token_ids) for group in completions for c in group] == [5, 5, 5]
    bench_rollout.transformers_side(theirs, 3, 4, 5, "eager", "dynamic")()


@pytest.mark.parametrize("lengths", bench_train.LENGTHS)
def test_all_sides_of_the_training_pass_give_the_same_gradients(pair, lengths):
    ours, theirs = pair
    theirs.set_experts_implementation("eager")
    groups = bench_train.make_groups(lengths, 2, 3, ours.config.vocab_size)
    bench_train.build_pass(theirs, groups, False, 4096)()
    for share_prompts in (True, False):
        bench_train.build_pass(ours, groups, share_prompts, 4096)()
        assert bench_train.largest_difference(ours, theirs) < 1e-3


@pytest.mark.parametrize("lengths", bench_grpo.MUST_TIME)
def test_a_step_of_ours_and_of_trl(pair, lengths):
    ours, theirs = load_pair()
    step = bench_grpo.OurStep(ours, lengths, (2, 2, 4))()
    assert step["cpu"] > 0 and (step["length"] == 4 if lengths == "fixed" else step["length"] <= 4)
    between = []
    clock = bench_grpo.Clock(lambda: between.append(1))
    trainer = bench_grpo.build_trl(theirs, lengths, 2, 1, clock, (2, 2, 4))
    trainer.train()
    assert len(clock.seconds) == len(between) == 1 and clock.seconds[0]["cpu"] > 0
    assert bench_grpo.mean_length(trainer) == 4 if lengths == "fixed" else bench_grpo.mean_length(trainer) <= 4


def test_operations_of_a_token_are_two_for_each_weight_it_meets(pair):
    model, config = pair[0], pair[0].config
    idle = config.n_routed_experts - config.num_experts_per_tok
    weights = 0
    for name, parameter in model.named_parameters():
        if "norm" in name or "embed_tokens" in name:
            continue
        share = 1 - idle / config.n_routed_experts if ".experts." in name else 1
        weights += parameter.numel() * share
    assert decode_flops(config, 0) == pytest.approx(2 * weights)


def test_rows_of_the_same_name_are_replaced_and_others_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sides, "RESULTS", tmp_path / "results.json")
    script = str(Path(sides.__file__).with_name("bench.py"))
    monkeypatch.setattr(sys, "argv", [script, "--rounds", "2", "--llama_python", "/somewhere/python"])
    sides.report([sides.row("a", 2.0, 1.0, 1.5, "x/s"), sides.row("b", 2.0, 6.0, 2, "s", True)], write=True)
    sides.report([sides.row("a", 3.0, 1.0, 1.5, "x/s")], write=True)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["name"], row["ratio"], row["must"]) for row in rows] == [("a", 3.0, 1.5), ("b", 3.0, 2)]
    assert set(rows[0]) == {"name", "ours", "peer", "ratio", "must", "unit", "machine", "date", "command"}
    assert rows[0]["command"] == "python tests/bench/bench.py --rounds 2 --llama_python PATH"


def test_rounds_take_turns_and_the_first_one_does_not_count(capsys):
    order = []

    def side(name, values):
        return lambda: order.append(name) or {"cpu": values.pop(0)}

    result = sides.interleave({"a": side("a", [99, 1, 3, 2]), "b": side("b", [98, 5, 5, 7])}, rounds=3)
    assert order == ["a", "b"] * 4
    assert result == {"a": {"cpu": 2}, "b": {"cpu": 5}}


def test_timed_counts_cpu_and_wall():
    seconds = sides.timed(lambda: torch.ones(64, 64) @ torch.ones(64, 64))
    assert 0 < seconds["cpu"] < 60 and 0 < seconds["wall"] < 60
