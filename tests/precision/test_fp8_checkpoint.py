"""Checkpoints in DeepSeek-V3's FP8 layout: written, read, kept in FP8, and refused when something is wrong."""

import json

import pytest
import torch
from fp8_cases import IDS, make_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from r1lab.kernels import ops
from r1lab.model import PolicyForCausalLM
from r1lab.precision import computed_weight, enable_fp8, load_fp8_pretrained, save_fp8_pretrained
from r1lab.rollout import RolloutEngine, SamplingParams

KV_A = "model.layers.1.self_attn.kv_a_proj_with_mqa.weight"
UP = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    return PolicyForCausalLM(make_config(kv_lora_rank=136, hidden_size=144, moe_intermediate_size=40)).eval()


@pytest.fixture(scope="module")
def saved(policy, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fp8")
    save_fp8_pretrained(policy, directory)
    return directory


def test_layout_is_deepseeks(policy, saved):
    config = json.loads((saved / "config.json").read_text())
    assert config["quantization_config"] == {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128],
    }  # fmt: skip
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    with safe_open(saved / "model.safetensors", "pt") as file:
        kinds = {name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in file.keys()}
    assert kinds[KV_A] == ("F8_E4M3", [144, 144]) and kinds[KV_A + "_scale_inv"] == ("F32", [2, 2])
    assert kinds[UP] == ("F8_E4M3", [40, 144]) and kinds[UP + "_scale_inv"] == ("F32", [1, 2])
    high = {name for name, (kind, _) in kinds.items() if kind == "F32" and not name.endswith("_scale_inv")}
    assert high and all(any(word in name for word in WORDS) for name in high)
    assert sum(kind == "F8_E4M3" for kind, _ in kinds.values()) == 2 * 5 + 3 + 3 * 4 + 3


WORDS = ("embed_tokens", "lm_head", "norm", "mlp.gate.")


def test_weights_come_back_as_they_were_rounded(policy, saved):
    loaded = load_fp8_pretrained(saved)
    state = policy.state_dict()
    for name, tensor in loaded.state_dict().items():
        if any(word in name for word in WORDS):
            assert torch.equal(tensor, state[name]), name
        elif not name.endswith(("gate_up_proj", "down_proj")):
            expected = ops.dequantize_tiles(*ops.quantize_tiles(state[name], 128), 128)
            assert torch.equal(tensor, expected) and not torch.equal(tensor, state[name]), name
    enable_fp8(policy)
    experts, theirs = policy.model.layers[1].mlp.experts, loaded.model.layers[1].mlp.experts
    for name in ("gate_up_proj", "down_proj"):
        assert torch.equal(computed_weight(experts, name), getattr(theirs, name))
    assert not hasattr(loaded.config, "quantization_config")


@torch.no_grad()
def test_what_is_loaded_computes_what_was_trained_in_fp8(policy, saved):
    enable_fp8(policy)
    expected = policy(IDS).logits
    loaded, kept = load_fp8_pretrained(saved), load_fp8_pretrained(saved, keep=True)
    enable_fp8(loaded)
    for other in (loaded, kept):
        assert (other(IDS).logits - expected).abs().max() < 1e-3 * expected.abs().max()


def test_a_second_round_trip_changes_nothing(saved, tmp_path):
    save_fp8_pretrained(load_fp8_pretrained(saved), tmp_path)
    first, second = load_file(saved / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.allclose(tensor.float(), second[name].float(), rtol=2e-7, atol=0), name


@torch.no_grad()
def test_kept_weights_take_a_quarter_and_roll_out_alike(saved):
    """As a policy whose weights are rounded anew, to what they are, at each use."""
    loaded, kept = load_fp8_pretrained(saved), load_fp8_pretrained(saved, keep=True)

    def size(model, module):
        tensors = [*model.get_submodule(module).parameters(), *model.get_submodule(module).buffers()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    for module in ("model.layers.1.mlp.experts", "model.layers.0.self_attn.o_proj"):
        assert 0.25 < size(kept, module) / size(loaded, module) < 0.26
    enable_fp8(loaded)
    params = SamplingParams(n=2, max_tokens=8, seed=2)
    rollouts = [RolloutEngine(m, eos_token_id=3).generate([[1, 2], [5]], params) for m in (loaded, kept)]
    for one, other in zip(*(sum(groups, []) for groups in rollouts), strict=True):
        assert one.token_ids == other.token_ids
        assert one.logps == pytest.approx(other.logps, abs=1e-4)
    kept.model.layers[0].self_attn.path = "absorb"
    assert kept(IDS).logits.isfinite().all()


def test_kept_weights_cannot_be_trained_or_saved(saved, tmp_path):
    kept = load_fp8_pretrained(saved, keep=True).train()
    with pytest.raises(RuntimeError, match="cannot be trained; load the checkpoint without keep"):
        kept(input_ids=IDS, labels=IDS)
    with pytest.raises(ValueError, match="stored in FP8 already"):
        save_fp8_pretrained(kept, tmp_path)


def test_several_files(policy, saved, tmp_path):
    tensors = load_file(saved / "model.safetensors")
    names = sorted(tensors)
    for number, part in enumerate((names[::2], names[1::2])):  # scales and weights in different files
        save_file({name: tensors[name] for name in part}, tmp_path / f"model-{number}.safetensors")
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    whole, parts = load_fp8_pretrained(saved), load_fp8_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, c: t.pop(UP + "_scale_inv"), "up_proj.weight is FP8, but the checkpoint has no .*_scale_inv"),
        (
            lambda t, c: t.update({KV_A + "_scale_inv": torch.ones(1, 2)}),
            r"scale_inv has shape \(1, 2\): expected \(2, 2\), one scale for each 128x128 block of .* \(144, 144\)",
        ),
        (lambda t, c: c["quantization_config"].update(weight_block_size=[1, 32]), r"weight_block_size=\[1, 32\]"),
        (lambda t, c: c.pop("quantization_config"), "is no FP8 checkpoint; load it with PolicyForCausalLM"),
    ],
)
def test_what_does_not_fit_is_named(saved, tmp_path, change, message):
    tensors, config = load_file(saved / "model.safetensors"), json.loads((saved / "config.json").read_text())
    change(tensors, config)
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_fp8_pretrained(tmp_path)


def test_no_files(saved, tmp_path):
    (tmp_path / "config.json").write_text((saved / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="no .safetensors files"):
        load_fp8_pretrained(tmp_path)


def test_a_diverged_policy_is_not_saved(tmp_path):
    policy = PolicyForCausalLM(make_config())
    with torch.no_grad():
        policy.model.layers[1].mlp.experts.down_proj[2, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="experts.down_proj holds NaN or infinity"):
        save_fp8_pretrained(policy, tmp_path / "out")
    assert not (tmp_path / "out").exists()
