"""Counts against models that are really built, FLOPs and cache against what they really compute and keep."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DeepseekV3Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from r1lab.model import PolicyForCausalLM
from r1lab.model.cache import LatentCache
from r1lab.plan import BUILT_IN, Parallel, load_shape
from r1lab.plan.figures import find_value
from r1lab.plan.memory import device_parameters
from r1lab.plan.models import EMBEDDED, shape_from_config
from r1lab.plan.parameters import count_parameters, flops_section, kv_bytes_per_token, parameter_section

TINY = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
TINY_V3 = TINY | {"num_key_value_heads": 4, "first_k_dense_replace": 1, "q_lora_rank": 12, "kv_lora_rank": 16,
                  "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 6, "n_routed_experts": 4,
                  "num_experts_per_tok": 2, "moe_intermediate_size": 20, "n_group": 2, "topk_group": 1}  # fmt: skip
CONFIGS = {
    "v3": DeepseekV3Config(**TINY_V3),
    "v3 without a query latent": DeepseekV3Config(**TINY_V3 | {"q_lora_rank": None, "n_shared_experts": 2}),
    "v3 with biases": DeepseekV3Config(**TINY_V3, attention_bias=True),
    "v3, all layers dense": DeepseekV3Config(**TINY_V3 | {"first_k_dense_replace": 3}),
    "qwen2": Qwen2Config(**TINY, num_key_value_heads=2),
    "qwen2 tied": Qwen2Config(**TINY, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**TINY, num_key_value_heads=2, head_dim=10),
    "qwen3 moe": Qwen3MoeConfig(**TINY, num_key_value_heads=2, head_dim=8, num_experts=4, num_experts_per_tok=2,
                                moe_intermediate_size=20),
    "llama": LlamaConfig(**TINY, num_key_value_heads=4),
    "llama with biases": LlamaConfig(**TINY, num_key_value_heads=4, attention_bias=True, mlp_bias=True),
}  # fmt: skip


def _total(shape):
    return find_value(parameter_section(shape).figures, "total_parameters")


def _built(config):
    with torch.device("meta"):
        return sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_equal_transformers(name, tmp_path):
    CONFIGS[name].save_pretrained(tmp_path)
    assert _total(load_shape(str(tmp_path))) == _built(CONFIGS[name])


@pytest.mark.parametrize("name", BUILT_IN)
def test_parameters_of_built_in_models_equal_transformers(name):
    values = dict(BUILT_IN[name])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    assert _total(load_shape(name)) == _built(config)


def test_parameters_of_the_embedded_base():
    model = PolicyForCausalLM.from_pretrained(EMBEDDED.parent)
    assert _total(load_shape("embedded")) == sum(p.numel() for p in model.parameters())


def test_experts_of_the_embedded_base():
    model = PolicyForCausalLM.from_pretrained(EMBEDDED.parent)
    shape = load_shape("embedded")
    routed = sum(p.numel() for name, p in model.named_parameters() if "experts" in name and "shared" not in name)
    assert routed == shape.num_moe_layers * shape.num_experts * count_parameters(shape).expert


@pytest.mark.parametrize("name", ["v3", "v3 without a query latent", "qwen3 moe", "qwen2", "qwen3", "llama"])
def test_forward_flops_equal_the_matrix_products_that_ran(name):
    """Eager attention computes the whole square, so a query meets `length` keys instead of (length + 1) / 2."""
    config, length = CONFIGS[name], 24
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"  # torch's counter does not know grouped products
    model = AutoModelForCausalLM.from_config(config).eval()
    shape = shape_from_config(config.to_dict(), name)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.arange(length)[None], use_cache=False)
    figures = flops_section(shape, length).figures
    linear, attention = find_value(figures, "linear_weights"), find_value(figures, f"attention_flops_at_{length}")
    assert counter.get_total_flops() == pytest.approx(length * (2 * linear + attention * 2 * length / (length + 1)))


def test_backward_flops_are_twice_the_forward():
    config, length = CONFIGS["qwen2"], 24
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as forward:
        logits = model(torch.arange(length)[None], use_cache=False).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    assert backward.get_total_flops() == 2 * forward.get_total_flops()


def test_cache_equals_what_transformers_keeps():
    model = AutoModelForCausalLM.from_config(CONFIGS["qwen2"]).eval()
    with torch.no_grad():
        cache = model(torch.arange(10)[None], use_cache=True).past_key_values
    kept = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert kept == 10 * kv_bytes_per_token(shape_from_config(CONFIGS["qwen2"].to_dict(), "qwen2"), 4).value


def test_latent_cache_equals_what_the_embedded_base_keeps():
    model, cache = PolicyForCausalLM.from_pretrained(EMBEDDED.parent).eval(), LatentCache()
    with torch.no_grad():
        model(torch.arange(3, 13)[None], past_key_values=cache, use_cache=True)
    kept = sum(tensor.numel() * 4 for tensor in cache.kv_cache + cache.pe_cache)
    assert kept == 10 * kv_bytes_per_token(load_shape("embedded"), 4).value


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipe", "dualpipev"])
@pytest.mark.parametrize("name", ["v3", "qwen2", "llama"])
def test_stages_add_up_to_the_model(schedule, name):
    config = CONFIGS[name].to_dict() | {"num_hidden_layers": 9}
    shape = shape_from_config(config, name)
    kept = [device_parameters(shape, Parallel(pp=4, dp=2, ep=1, schedule=schedule), i) for i in range(4)]
    copies = 2 if schedule == "dualpipe" else 1
    assert sum(d.shared + d.plain + d.experts for d in kept) == copies * _total(shape)
    assert sum(d.layers for d in kept) == copies * 9


def test_a_config_file_is_read_as_its_directory(tmp_path):
    CONFIGS["v3"].save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    assert json.loads(path.read_text())["model_type"] == "deepseek_v3"
    assert _total(load_shape(str(path))) == _total(load_shape(str(tmp_path)))
