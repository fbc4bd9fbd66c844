"""Published figures, within 5 %.

V3: DeepSeek-V3 report (arXiv:2412.19437); README_WEIGHTS.md of deepseek-ai/DeepSeek-V3.
ISCA: Insights into DeepSeek-V3 (arXiv:2505.09343), tables 1, 2 and 4, section 2.3.2.
"""

import pytest
from plan_cases import V3, v3_figures

from r1lab.plan import load_shape
from r1lab.plan.communication import exchange_seconds
from r1lab.plan.figures import find_value
from r1lab.plan.parameters import attention_flops, flops_section, kv_bytes_per_token, parameter_section
from r1lab.plan.training import DEFAULT_EFFICIENCY

near = {"rel": 0.05}


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("total_parameters", 671e9),  # V3, abstract
        ("active_parameters", 37e9),  # V3, abstract; README_WEIGHTS: 36.7 B
        ("mtp_parameters", 11.5e9),  # README_WEIGHTS: unique parameters
        ("total_parameters_with_mtp", 671e9 + 11.5e9),
        ("active_parameters_with_mtp", 36.7e9 + 2.4e9 - 1.8e9),  # the module's 2.4 B share 1.8 B with the model
    ],
)
def test_parameters_of_v3(name, published):
    assert find_value(parameter_section(V3).figures, name) == pytest.approx(published, **near)


@pytest.mark.parametrize(
    ("model", "kilobytes"), [("deepseek-v3", 70.272), ("qwen2.5-72b", 327.680), ("llama-3.1-405b", 516.096)]
)
def test_cache_per_token(model, kilobytes):
    """ISCA, table 1 (bf16), to the byte."""
    assert kv_bytes_per_token(load_shape(model)).value == pytest.approx(1e3 * kilobytes)


@pytest.mark.parametrize(("model", "gflops"), [("deepseek-v3", 250), ("llama-3.1-405b", 2448)])
def test_training_flops_per_token(model, gflops):
    """ISCA, table 2: training cost per token at length 4,096."""
    figures = flops_section(load_shape(model), 4096).figures
    assert find_value(figures, "training_flops") == pytest.approx(gflops * 1e9, **near)


def test_attention_grows_with_length():
    assert attention_flops(V3, 131072).value == pytest.approx(32 * attention_flops(V3, 4096).value, rel=1e-3)


def test_gpu_hours_from_the_reports_throughput():
    """V3, table 1: 180 K H800 hours per trillion tokens, 119 K for the context extension, 5 K for post-training."""
    figures = v3_figures(gpu_hours_per_trillion=180e3, extra_gpu_hours=119e3 + 5e3)
    assert figures["gpu_hours"] == pytest.approx(2.788e6, rel=1e-3)
    assert figures["cost"] == pytest.approx(5.576e6, rel=1e-3)  # at $2 an hour
    assert v3_figures(gpu_hours_per_trillion=180e3, num_tokens=1e12)["days"] == pytest.approx(3.7, **near)  # V3, 1


def test_gpu_hours_from_the_default_efficiency():
    figures = v3_figures(extra_gpu_hours=124e3)
    assert figures["gpu_hours"] == pytest.approx(2.788e6, **near)
    assert figures["model_flops_utilisation"] == pytest.approx(0.3894, **near)  # ISCA, table 4
    assert figures["tokens_per_second"] * 86400 == pytest.approx(272.80e9, **near)
    assert figures["training_step_time"] == pytest.approx(19.926, **near)


def test_the_default_efficiency_is_the_published_one_outside_the_bubble():
    assert DEFAULT_EFFICIENCY == pytest.approx(0.3894 / (1 - v3_figures()["bubble_share"]), rel=2e-3)


def test_measured_utilisation_of_v3():
    """ISCA, table 4: 385 TFLOPS (causal), 38.94 % of the peak."""
    figures = v3_figures(gpu_hours_per_trillion=180e3)
    assert figures["tokens_per_gpu_second"] * figures["training_flops"] == pytest.approx(385e12, **near)
    assert figures["model_flops_utilisation"] == pytest.approx(0.3894, **near)


def test_v3_fits_its_devices_only_by_what_the_report_saves():
    """V3, sections 3.2.3 and 3.3.3: recomputation and FP8 activations are what makes tensor parallelism unnecessary."""
    assert 0.7 < v3_figures(with_mtp=True)["memory_share"] < 1
    assert v3_figures(with_mtp=True, recompute="none")["memory_share"] > 1
    assert v3_figures(with_mtp=True, precision="bf16")["memory_share"] > 1


def test_node_limit():
    """V3, section 3.2.2: 8 nodes of 8 devices, each token to at most 4 of them."""
    figures = v3_figures()
    assert (figures["ep_nodes"], figures["max_nodes_per_token"]) == (8, 4)
    assert 3 < figures["nodes_per_token"] <= 4
    # Section 3.4.1: a token meets 3.2 experts per node at most on average, at 4 nodes.
    assert 8 / figures["nodes_per_token"] < 3.2


def test_fp8_dispatch_is_half_of_bf16():
    eight, sixteen = v3_figures(), v3_figures(precision="bf16")
    assert eight["dispatch_payload"] / sixteen["dispatch_payload"] <= 0.55
    assert eight["combine_payload"] == sixteen["combine_payload"] == 2 * 7168


def test_exchange_time_of_decoding():
    """ISCA, section 2.3.2: 32 tokens to 9 experts, 1 byte out and 2 back, 7 K hidden, 50 GB/s: 120.96 us; 61 layers of
    two such (two micro-batches): 14.76 ms a token."""
    seconds = exchange_seconds(tokens=32, receivers=9, bytes_per_receiver=3 * 7168, bandwidth=50e9)
    assert seconds == pytest.approx(120.96e-6, **near)
    assert 61 * 2 * seconds == pytest.approx(14.76e-3, **near)


def test_micro_batches_of_v3():
    """15,360 sequences over 128 pipelines, one at a time; the published 19.93 s agree with 120 of them, not with 60."""
    assert v3_figures()["num_micro_batches"] == 120
