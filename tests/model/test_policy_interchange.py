"""Files, generate() and trainers: what makes the policy usable outside this project."""

import json

import pytest
import torch
from model_cases import VARIANTS, make_ids, make_pair, make_policy, right_mask
from safetensors import safe_open
from transformers import AutoModelForCausalLM, DeepseekV3ForCausalLM

from r1lab.model import LatentCache, PolicyForCausalLM


def stored_keys(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}


@pytest.mark.parametrize("variant", ["default", "no_q_lora", "attention_bias", "tied_embeddings"])
@torch.no_grad()
def test_checkpoints_load_both_ways(variant, tmp_path):
    ours, theirs = make_pair(**VARIANTS[variant])
    ids = make_ids(2, 7)
    expected = ours(ids).logits
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    keys = stored_keys(tmp_path / "ours")
    assert keys == stored_keys(tmp_path / "theirs")
    assert "model.layers.1.mlp.experts.7.up_proj.weight" in keys
    assert set(ours.state_dict()) == set(theirs.state_dict())

    as_theirs = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "ours").eval()
    as_ours = PolicyForCausalLM.from_pretrained(tmp_path / "theirs").eval()
    again = PolicyForCausalLM.from_pretrained(tmp_path / "ours").eval()
    for model in (as_theirs, as_ours, again):
        assert (model(ids).logits - expected).abs().max() < 1e-4
    assert again.model.layers[1].mlp.gate.expert_load_E.sum() == 0


def test_saved_config_names_the_public_architecture(tmp_path):
    make_policy().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["DeepseekV3ForCausalLM"] and config["model_type"] == "deepseek_v3"
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is DeepseekV3ForCausalLM


def test_fresh_weights_are_drawn_like_transformers():
    ours, theirs = PolicyForCausalLM(make_policy().config), make_pair()[1]
    fresh = DeepseekV3ForCausalLM(theirs.config)
    for (name, a), (_, b) in zip(sorted(ours.named_parameters()), sorted(fresh.named_parameters())):
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.2, abs=1e-3), name


@pytest.mark.parametrize("side", ["none", "left"])
def test_greedy_generate_equals_transformers(side):
    ours, theirs = make_pair()
    ids = make_ids(3, 6)
    mask = torch.ones_like(ids) if side == "none" else right_mask([6, 4, 2], 6).flip(1)
    arguments = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    expected = theirs.generate(ids, **arguments)
    assert torch.equal(ours.generate(ids, **arguments), expected)
    assert torch.equal(ours.generate(ids, past_key_values=LatentCache(), **arguments), expected)
    assert torch.equal(ours.generate(ids, use_cache=False, **arguments), expected)


def test_beam_search_equals_transformers():
    ours, theirs = make_pair()
    ids = make_ids(2, 5)
    arguments = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 6, "num_beams": 3, "pad_token_id": 0}
    arguments["do_sample"] = False
    assert torch.equal(ours.generate(ids, **arguments), theirs.generate(ids, **arguments))
