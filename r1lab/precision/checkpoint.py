"""Checkpoints in DeepSeek-V3's FP8 layout: every linear layer's weight as E4M3 beside the scales of its 128x128 blocks.

    model.layers.3.mlp.experts.7.up_proj.weight             E4M3 [N, K]
    model.layers.3.mlp.experts.7.up_proj.weight_scale_inv   fp32 [ceil(N / 128), ceil(K / 128)], weight = E4M3 * scale

as released (github.com/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md), `quantization_config` in config.json included, so
that vLLM and SGLang read what we save. Embedding, head, gate and norms keep the policy's dtype. transformers' own
dequantisation divides a weight evenly into as many blocks as there are scales, which is another layout wherever 128
does not divide the shape (`kv_a_proj_with_mqa` of V3 itself has 576 rows).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import DeepseekV3Config

from r1lab.files import replacing
from r1lab.kernels import ops
from r1lab.kernels.reference import TILE
from r1lab.model import PolicyForCausalLM
from r1lab.precision.stored import store_experts, store_linear

QUANTIZATION = {
    "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [TILE, TILE],
}  # fmt: skip
SCALE_SUFFIX = "_scale_inv"

_QUANTIZED = re.compile(r"model\.layers\.\d+\.(self_attn|mlp)\.([\w.]+\.)?\w+_proj(_with_mqa)?\.weight")
_EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_INDEX = "model.safetensors.index.json"


def is_fp8_config(config: object) -> bool:
    """Whether a config says that its checkpoint's weights are FP8."""
    return (_quantization_of(config) or {}).get("quant_method") == "fp8"


def save_fp8_pretrained(policy: PolicyForCausalLM, directory: str | Path) -> None:
    """`save_pretrained`, then every linear layer's weight rounded to E4M3 blocks; a file is replaced when it is whole.

    Raises:
        ValueError: a weight that is not finite, or that is stored in FP8 already.
    """
    directory = Path(directory)
    if any(getattr(module, "is_stored_fp8", False) for module in policy.modules()):
        raise ValueError("the policy's weights are stored in FP8 already; save the directory that it was loaded from")
    for name, parameter in policy.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinity, which E4M3 blocks cannot; save an earlier checkpoint")
    policy.save_pretrained(directory)
    files = {path: _quantize_file(path) for path in sorted(directory.glob("*.safetensors"))}
    if (directory / _INDEX).exists():
        index = json.loads((directory / _INDEX).read_text())
        index["weight_map"] = {name: path.name for path, names in files.items() for name in names}
        _replace_text(directory / _INDEX, json.dumps(index, indent=2) + "\n")
    config = json.loads((directory / "config.json").read_text()) | {"quantization_config": QUANTIZATION}
    _replace_text(directory / "config.json", json.dumps(config, indent=2) + "\n")


def load_fp8_pretrained(
    directory: str | Path, dtype: torch.dtype = torch.float32, keep: bool = False, with_mtp: bool = False
) -> PolicyForCausalLM:
    """The policy of an FP8 checkpoint directory, on the CPU.

    Its weights are dequantised to `dtype`, ready to be trained or rounded anew (`enable_fp8`); with keep they stay E4M3
    with their scales, a quarter of fp32's memory, for inference only. with_mtp: as in `PolicyForCausalLM`.

    Raises:
        FileNotFoundError: no such directory, or no weights in it.
        ValueError: not an FP8 checkpoint of 128x128 blocks, or scales that are missing or do not fit their weight.
    """
    directory = Path(directory)
    config = DeepseekV3Config.from_pretrained(directory)
    _check_quantization(config, directory)
    del config.quantization_config
    stored: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    state = {}
    for name, tensor, scale in _read_weights(directory):
        if scale is not None and keep:
            stored[name] = tensor, scale
        # A kept weight passes through the ordinary loading once, so that every name is checked there.
        state[name] = (tensor if scale is None else ops.dequantize_tiles(tensor, scale, TILE)).to(
            torch.float32 if name.endswith("e_score_correction_bias") else dtype
        )
    policy = PolicyForCausalLM.from_pretrained(None, config=config, state_dict=state, dtype=dtype, with_mtp=with_mtp)
    if keep:
        _store(policy, stored)
    return policy.eval()


def _quantization_of(config: object) -> dict | None:
    quantization = getattr(config, "quantization_config", None)
    return quantization if quantization is None or isinstance(quantization, dict) else quantization.to_dict()


def _check_quantization(config: DeepseekV3Config, directory: Path) -> None:
    if not is_fp8_config(config):
        raise ValueError(f"{directory} is no FP8 checkpoint; load it with PolicyForCausalLM.from_pretrained")
    block = _quantization_of(config).get("weight_block_size")
    if list(block or ()) != [TILE, TILE]:
        raise ValueError(f"weight_block_size={block} in {directory}/config.json: only [{TILE}, {TILE}] is supported")


def _quantize_file(path: Path) -> list[str]:
    """Rewrites a file in the FP8 layout; returns the names in it."""
    tensors = {}
    with safe_open(path, "pt") as file:
        for name in file.keys():
            tensor = file.get_tensor(name)
            if _QUANTIZED.fullmatch(name):
                tensor, tensors[name + SCALE_SUFFIX] = ops.quantize_tiles(tensor, TILE)
            tensors[name] = tensor
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    return list(tensors)


def _replace_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def _read_weights(directory: Path) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """(name, tensor, its scales or None), scales that lie in another file included."""
    paths = sorted(directory.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no .safetensors files in {directory}")
    files = [safe_open(path, "pt") for path in paths]
    place = {name: file for file in files for name in file.keys()}
    for name, file in place.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        tensor, scale = file.get_tensor(name), None
        if tensor.dtype == torch.float8_e4m3fn:
            scale = _read_scale(name, tensor, place)
        yield name, tensor, scale


def _read_scale(name: str, tensor: torch.Tensor, place: dict) -> torch.Tensor:
    if name + SCALE_SUFFIX not in place:
        raise ValueError(f"{name} is FP8, but the checkpoint has no {name + SCALE_SUFFIX}; a file is missing")
    scale = place[name + SCALE_SUFFIX].get_tensor(name + SCALE_SUFFIX).float()
    expected = tuple(-(-size // TILE) for size in tensor.shape)
    if tuple(scale.shape) != expected:
        raise ValueError(
            f"{name + SCALE_SUFFIX} has shape {tuple(scale.shape)}: expected {expected}, one scale for each "
            f"{TILE}x{TILE} block of {name} {tuple(tensor.shape)}"
        )
    return scale


def _store(policy: nn.Module, stored: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Puts E4M3 weights in the place of the dequantised ones."""
    experts: dict[str, dict[str, dict[int, tuple[torch.Tensor, torch.Tensor]]]] = {}
    for name, pair in stored.items():
        if match := _EXPERT.fullmatch(name):
            module, number, part = match.groups()
            experts.setdefault(module, {}).setdefault(part, {})[int(number)] = pair
        else:
            store_linear(policy.get_submodule(name.removesuffix(".weight")), *pair)
    for name, parts in experts.items():
        store_experts(
            policy.get_submodule(name), {part: [pairs[e] for e in sorted(pairs)] for part, pairs in parts.items()}
        )
