"""Impossible layouts are refused by name; memory, traffic and rollouts follow the layout."""

import math
import random
from dataclasses import replace

import pytest
from plan_cases import V3, V3_CLUSTER, V3_PARALLEL, figures, v3_figures, v3_run

from r1lab.parallel.schedule import SCHEDULES
from r1lab.parallel.simulate import Durations, bubble_formula
from r1lab.plan import Cluster, Parallel, RolloutPlan, Run, find_gpu, load_shape, make_plan
from r1lab.plan.communication import max_nodes_per_token, touch_probability
from r1lab.plan.memory import layers_of_stage
from r1lab.plan.training import BUBBLES, pipeline_section

QWEN = load_shape("qwen2.5-7b")
NODE = Cluster(find_gpu("H100"), num_gpus=8)


@pytest.mark.parametrize(
    ("changes", "named", "fix"),
    [
        ({"dp": 100}, "pp=16 x dp=100 x tp=1 = 1600 is not num_gpus=2048", "use dp=128, or num_gpus=1600"),
        ({"pp": 15}, "pp=15 x dp=128 x tp=1 = 1920", "a pp that divides 2048"),
        ({"pp": 0}, "pp=0", "at least 1"),
        ({"tp": 2}, "tp=2", "raise ep or pp"),
        ({"ep": 48}, "ep=48 does not divide the 256 experts", "use ep=32"),
        ({"ep": 256}, "ep=256 does not divide dp=128", "use ep=128"),
        ({"pp": 64, "dp": 32, "ep": 32}, "pp=64 with dualpipe makes 64 stages, more than the 61 layers", "smaller pp"),
        ({"pp": 32, "dp": 64, "schedule": "dualpipev"}, "pp=32 with dualpipev makes 64 stages", "smaller pp"),
        ({"schedule": "gpipe"}, "schedule='gpipe'", "dualpipe"),
        ({"zero": 4}, "zero=4", "0, 1, 2 or 3"),
        ({"zero": 3}, "zero=3 with pp=16", "zero=1"),
    ],
)
def test_impossible_layouts_of_v3(changes, named, fix):
    with pytest.raises(ValueError) as error:
        make_plan(V3, V3_CLUSTER, replace(V3_PARALLEL, **changes), v3_run())
    assert str(error.value).startswith(named) and fix in str(error.value)


@pytest.mark.parametrize(
    ("changes", "named", "fix"),
    [
        ({"batch_size": 15361}, "batch_size=15361", "for example 15360"),
        ({"batch_size": 128 * 30}, "num_micro_batches=30", "2 x pp = 32"),
        ({"batch_size": 128 * 33}, "num_micro_batches=33", "for example 34"),
        ({"micro_batch_size": 0}, "micro_batch_size=0", "at least 1"),
        ({"sequence_length": 0}, "sequence_length=0", "at least 1"),
        ({"sequence_length": 200_000}, "sequence_length=200000", "max_position_embeddings=163840"),
        ({"precision": "int4"}, "precision='int4'", "fp8"),
        ({"recompute": "some"}, "recompute='some'", "selective"),
        ({"efficiency": 1.5}, "efficiency=1.5", "at most 1"),
        ({"num_tokens": 0}, "num_tokens=0", "positive"),
        ({"gpu_hours_per_trillion": -1}, "gpu_hours_per_trillion=-1", "positive"),
        ({"price": -2}, "price=-2", "negative"),
    ],
)
def test_impossible_runs(changes, named, fix):
    with pytest.raises(ValueError) as error:
        make_plan(V3, V3_CLUSTER, V3_PARALLEL, v3_run(**changes))
    assert str(error.value).startswith(named) and fix in str(error.value)


def test_impossible_clusters_and_experts():
    with pytest.raises(ValueError, match="num_gpus=12 leaves a node of 8 half used; use 8 or 16"):
        Cluster(find_gpu("H100"), 12)
    with pytest.raises(ValueError, match="gpu='B9'"):
        find_gpu("B9")
    with pytest.raises(ValueError, match="memory_bytes=-1.0: must be positive"):
        Cluster(find_gpu("H100", memory_bytes=-1.0), 8)
    with pytest.raises(ValueError, match="ep=2: qwen2.5-7b has no experts"):
        make_plan(QWEN, NODE, Parallel(dp=8, ep=2), Run())
    with pytest.raises(ValueError, match="FP8.*use bf16"):
        make_plan(QWEN, Cluster(find_gpu("A100"), 8), Parallel(dp=8), Run(precision="fp8"))
    with pytest.raises(ValueError, match="ep=4 leaves a node of 3 GPUs half used"):
        make_plan(V3, Cluster(find_gpu("H100"), 12, gpus_per_node=3), Parallel(dp=12, ep=4), Run())


@pytest.mark.parametrize("layers", [4, 7, 61])
@pytest.mark.parametrize("stages", [1, 3, 4])
def test_stages_split_the_layers(layers, stages):
    split = [layers_of_stage(layers, stages, stage) for stage in range(stages)]
    assert [layer for part in split for layer in part] == list(range(layers))
    assert max(map(len, split)) - min(map(len, split)) <= 1


def test_memory_follows_the_layout():
    base = figures(make_plan(QWEN, NODE, Parallel(dp=8, zero=0), Run()))
    ones, threes = (figures(make_plan(QWEN, NODE, Parallel(dp=8, zero=zero), Run())) for zero in (1, 3))
    assert base["weights"] == 2 * base["total_parameters"] and base["gradients"] == 4 * base["total_parameters"]
    assert base["optimizer_states"] == 12 * base["total_parameters"] == 8 * ones["optimizer_states"]
    assert ones["weights"] == base["weights"] == 8 * threes["weights"]
    full = figures(make_plan(QWEN, NODE, Parallel(dp=8), Run(recompute="full", micro_batch_size=2)))
    assert full["activations"] == 28 * 3584 * 2 * 2 * 4096
    assert full["activations"] < base["activations"]


def test_activations_of_a_pipeline_are_those_of_its_micro_batches():
    plans = {
        name: figures(make_plan(QWEN, NODE, Parallel(pp=4, dp=2, schedule=name), Run(recompute="full")))
        for name in SCHEDULES
    }
    layer = 3584 * 2 * 4096
    assert plans["1f1b"]["activations"] == plans["zb1p"]["activations"] == 4 * 7 * layer
    assert plans["dualpipe"]["activations"] == 5 / 2 * 14 * layer  # 5 micro-batches of a stage, 7 layers each
    # Two stages, of which the fullest device's are the first and the last: embedding and head, and half of the layers.
    ends = 2 * 152064 * 3584
    body = plans["1f1b"]["total_parameters"] - ends
    assert plans["dualpipe"]["weights"] == pytest.approx(2 * (ends + body / 2), rel=1e-4)


def test_more_devices_for_the_experts_take_less_memory():
    memory = [
        figures(make_plan(V3, V3_CLUSTER, replace(V3_PARALLEL, ep=ep), v3_run()))["device_memory"] for ep in (8, 32, 64)
    ]
    assert memory[0] > memory[1] > memory[2]


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_plans_bubble_is_the_simulators_formula(name):
    durations = Durations(1.0, 2.2, 0.9, 2.7)
    section = pipeline_section(Parallel(pp=8, schedule=name), 32, durations)
    assert figures([section])["bubble"] == pytest.approx(bubble_formula(name, 8, durations))
    assert set(BUBBLES) == set(SCHEDULES)


@pytest.mark.parametrize(("unit", "n_group"), [(4, 8), (32, 8), (64, 8), (16, 1), (128, 4)])
def test_an_even_load_touches_as_often_as_drawn(unit, n_group):
    shape = replace(V3, n_group=n_group, topk_group=max(1, n_group // 2))
    size, draws, hits = 256 // n_group, 4000, 0
    generator = random.Random(0)
    for _ in range(draws):
        groups = generator.sample(range(n_group), shape.topk_group)
        candidates = [group * size + i for group in groups for i in range(size)]
        hits += any(expert < unit for expert in generator.sample(candidates, 8))
    expected = touch_probability(shape, unit)
    assert hits / draws == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / draws) + 1e-9)


@pytest.mark.parametrize(("nodes", "limit"), [(2, 2), (4, 4), (8, 4), (16, 8)])
def test_node_limit_of_v3(nodes, limit):
    assert max_nodes_per_token(V3, nodes) == limit


def _rl(shape=QWEN, cluster=NODE, parallel=None, precision="bf16", **changes):
    plan = RolloutPlan(**changes)
    return figures(make_plan(shape, cluster, parallel or Parallel(dp=cluster.num_gpus), Run(
        precision=precision, rollouts=plan)))  # fmt: skip


def test_one_row_decodes_at_the_speed_of_reading_the_weights():
    figures = _rl(generation_batch_size=8, max_completion_length=1024, mean_completion_length=1024)
    read = 2 * (figures["total_parameters"] - 152064 * 3584)  # the embedding is looked up
    cache = (256 + 512) * figures["kv_bytes_per_token"]
    assert figures["bytes_read"] == pytest.approx(read + cache, rel=1e-6)
    assert figures["decode_step"] == pytest.approx((read + cache) / (0.8 * 3.35e12), rel=1e-6)


def test_few_rows_read_few_experts():
    rows = [_rl(V3, Cluster(find_gpu("H200"), 64), precision="fp8", generation_batch_size=64 * rows,
                rollout_ep=16) for rows in (1, 4, 64)]  # fmt: skip
    reads = [row["bytes_read"] - row["rows_at_once"] * 768 * row["kv_bytes_per_token"] for row in rows]
    # 16 rows of a replica choose 1 - (31/32)^16 = 40 % of the experts, 1,024 rows all of them.
    experts = reads[2] - (reads[2] - reads[0]) / (1 - (1 - (31 / 32) ** 16))
    assert reads[0] < reads[1] < reads[2]
    assert experts == pytest.approx(reads[2] - 58 * 16 * 3 * 7168 * 2048 * (1 + 4 / 128**2), rel=1e-3)


def test_a_step_is_its_parts_and_grows_with_the_work():
    small, large = _rl(generation_batch_size=1024), _rl(generation_batch_size=4096)
    parts = ("prefill_time", "rollout_time", "train_time", "weight_sync_time")
    assert small["rl_step_time"] == pytest.approx(sum(small[part] for part in parts))
    assert large["train_time"] == pytest.approx(4 * small["train_time"])
    assert large["rows_at_once"] == min(512, large["rows_that_fit"])
    assert large["rollout_tokens_per_second"] > small["rollout_tokens_per_second"]
    twice = _rl(generation_batch_size=1024, num_iterations=2, uses_reference=True)
    assert twice["train_time"] == pytest.approx(small["train_time"] * 7 / 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_generations": 1}, "num_generations=1"),
        ({"generation_batch_size": 1001}, "generation_batch_size=1001 is not divisible by num_generations=8"),
        ({"mean_completion_length": 5000}, "mean_completion_length=5000 is above"),
        ({"prompt_length": 0}, "prompt_length=0"),
        ({"rollout_ep": 3}, "rollout_ep=3: must divide"),
        ({"bandwidth_efficiency": 1.2}, "bandwidth_efficiency=1.2"),
    ],
)
def test_impossible_rollouts(changes, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        _rl(**changes)


def test_a_model_that_does_not_fit_for_rollouts_is_refused():
    with pytest.raises(ValueError, match="rollout_ep=1: 811.7 GB of weights and one row of 4352 tokens do not fit"):
        _rl(load_shape("llama-3.1-405b"))


def test_the_fewest_devices_that_fit_share_the_experts():
    cluster = Cluster(find_gpu("H800"), 64)
    figures = _rl(V3, cluster, precision="fp8")
    assert figures["rollout_ep"] == 16 and figures["rollout_weights"] < 72e9
    with pytest.raises(ValueError, match="rollout_ep=8"):
        _rl(V3, cluster, precision="fp8", rollout_ep=8)


def test_v3_with_mtp_costs_more():
    plain, mtp = v3_figures(), v3_figures(with_mtp=True)
    for name in ("training_flops", "device_memory", "gpu_hours"):
        assert mtp[name] > plain[name]
