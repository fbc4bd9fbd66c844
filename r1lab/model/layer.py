"""One block of the policy.

B rows, T tokens, D = hidden.
"""

import torch
from transformers import DeepseekV3Config
from transformers.modeling_layers import GradientCheckpointingLayer

from r1lab.model.attention import MultiHeadLatentAttention, PolicyRMSNorm
from r1lab.model.moe import DeepseekMoE, SwiGLU


class DecoderLayer(GradientCheckpointingLayer):
    """Pre-norm block: attention, then a dense feed-forward (the first layers) or a mixture of experts."""

    def __init__(self, config: DeepseekV3Config, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = MultiHeadLatentAttention(config, layer_idx)
        self.is_moe = layer_idx >= config.first_k_dense_replace
        self.mlp = DeepseekMoE(config) if self.is_moe else SwiGLU(config.hidden_size, config.intermediate_size)
        self.input_layernorm = PolicyRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = PolicyRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x_BTD: torch.Tensor,
        rotary,
        mask=None,
        token_mask_BT=None,
        packing=None,
        past_key_values=None,
        replay=None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x [B, T, D] -> (x [B, T, D], sequence-wise auxiliary loss or None); arguments as in the two halves."""
        if mask is None and past_key_values is None and self.self_attn.attends_as_rollouts_do(x_BTD):
            x_BTD = self.self_attn.add_to(x_BTD, self.input_layernorm, rotary, packing)
        else:
            x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, mask, past_key_values, packing)
        normed_BTD = self.post_attention_layernorm(x_BTD)
        if not self.is_moe:
            return x_BTD + self.mlp(normed_BTD), None
        y_BTD, aux_loss = self.mlp(normed_BTD, token_mask_BT, packing, replay)
        return x_BTD + y_BTD, aux_loss
