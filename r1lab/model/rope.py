"""Rotary position embedding: frequencies from transformers' rope functions (default, YaRN, ...), rotation in pairs.

B rows, T tokens, P = qk_rope_head_dim.
"""

import math

import torch
from torch import nn
from transformers import DeepseekV3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update


class PolicyRotaryEmbedding(nn.Module):
    """Angles of every position, computed once per forward and shared by all layers."""

    def __init__(self, config: DeepseekV3Config) -> None:
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        # Read by transformers' dynamic_rope_update, which stretches the frequencies of "dynamic" rope on long inputs.
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        is_default = self.rope_type == "default"
        init_fn = self.compute_default_rope_parameters if is_default else ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = init_fn(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: DeepseekV3Config, **kwargs) -> tuple[torch.Tensor, float]:
        """(inverse frequencies [P / 2], 1.0); transformers re-initialises the buffer through this name."""
        dim = config.qk_rope_head_dim
        exponents = torch.arange(0, dim, 2, dtype=torch.float32) / dim
        return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(cos, sin) of position_ids [B or 1, T], each [B or 1, T, 1, P / 2] in x's dtype; computed in fp32."""
        angles = position_ids[..., None, None].float() * self.inv_freq.to(device=x.device, dtype=torch.float32)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return cos.to(x.dtype), sin.to(x.dtype)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleave: bool) -> torch.Tensor:
    """Rotate x [B, T, heads, P] by cos, sin [B or 1, T, 1, P / 2].

    `interleave`: pairs are (x0, x1), (x2, x3), .. as DeepSeek stores them, else (x0, x_{P/2}), ..; both write the first
    members of all pairs, then the second ones. Queries and keys agree on the order, so scores do not depend on it.
    """
    if interleave:
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def attention_scale(config: DeepseekV3Config) -> float:
    """Softmax scale: qk_head_dim ** -0.5, times the squared YaRN mscale where rope is scaled (YaRN paper, eq. 22)."""
    scale = config.qk_head_dim**-0.5
    rope = config.rope_parameters
    mscale_all_dim = rope.get("mscale_all_dim", 0)
    if rope.get("rope_type", "default") == "default" or not mscale_all_dim:
        return scale
    mscale = 1.0 if rope["factor"] <= 1 else 0.1 * mscale_all_dim * math.log(rope["factor"]) + 1.0
    return scale * mscale * mscale
