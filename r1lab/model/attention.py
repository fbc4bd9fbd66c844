"""Multi-head Latent Attention (DeepSeek-V2 report, section 2.1), with both ways to compute it.

B rows, T new tokens, S tokens attended to (cache included), H heads, D = hidden, N = qk_nope_head_dim,
P = qk_rope_head_dim, V = v_head_dim, R = kv_lora_rank.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import DeepseekV3Config

from r1lab.kernels import ops
from r1lab.model.cache import LatentCache
from r1lab.model.linear import PolicyLinear, are_plain
from r1lab.model.packing import Packing
from r1lab.model.rope import apply_rotary, attention_scale


class PolicyRMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, statistics in fp32."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        """x [..., D] -> same shape."""
        return ops.rms_norm(x_TD, self.weight, self.eps)


class MultiHeadLatentAttention(nn.Module):
    """MLA over a latent cache.

    naive: expand keys and values of every head from the latents, then ordinary attention; for many queries.
    absorb: fold the expansion into the queries and outputs, attend over the latents themselves; for few queries, and
    in training on a CPU, whose rollouts do the same: both then have the same bits.
    """

    def __init__(self, config: DeepseekV3Config, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.nope_dim, self.rope_dim = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.v_head_dim, self.kv_lora_rank = config.v_head_dim, config.kv_lora_rank
        self.qk_head_dim = self.nope_dim + self.rope_dim
        self.rope_interleave = bool(config.rope_interleave)
        self.dropout = float(config.attention_dropout or 0.0)
        self.scale = attention_scale(config)
        self.path = "auto"
        """"naive" or "absorb" forces a path; "auto" takes the one with fewer multiplications, or what rollouts do."""

        q_size, bias = self.num_heads * self.qk_head_dim, config.attention_bias
        if config.q_lora_rank is None:
            self.q_proj = PolicyLinear(config.hidden_size, q_size, bias=False)
        else:
            self.q_a_proj = PolicyLinear(config.hidden_size, config.q_lora_rank, bias=bias)
            self.q_a_layernorm = PolicyRMSNorm(config.q_lora_rank)
            self.q_b_proj = PolicyLinear(config.q_lora_rank, q_size, bias=False)
        self.has_q_lora = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = PolicyLinear(config.hidden_size, self.kv_lora_rank + self.rope_dim, bias=bias)
        self.kv_a_layernorm = PolicyRMSNorm(self.kv_lora_rank)
        kv_size = self.num_heads * (self.nope_dim + self.v_head_dim)
        self.kv_b_proj = PolicyLinear(self.kv_lora_rank, kv_size, bias=False)
        self.o_proj = PolicyLinear(self.num_heads * self.v_head_dim, config.hidden_size, bias=bias)

    def forward(
        self,
        x_BTD: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache=None,
        packing: Packing | None = None,
    ) -> torch.Tensor:
        """x [B, T, D] -> [B, T, D].

        rotary: (cos, sin) from `PolicyRotaryEmbedding`. mask: bool [B or 1, 1, T, S], True where a query sees a key;
        None means plainly causal, with T == S or T == 1. cache: a `LatentCache` or any transformers `Cache`.
        packing: x is [1, N, D], the tokens of several sequences, shared prefixes once; without mask and cache.
        """
        B, T, _ = x_BTD.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD))) if self.has_q_lora else self.q_proj(x_BTD)
        q_nope, q_pe = q.view(B, T, self.num_heads, -1).split([self.nope_dim, self.rope_dim], dim=-1)
        kv, k_pe = self.kv_a_proj_with_mqa(x_BTD).split([self.kv_lora_rank, self.rope_dim], dim=-1)
        kv = self.kv_a_layernorm(kv)
        cos, sin = rotary
        q_pe = apply_rotary(q_pe, cos, sin, self.rope_interleave)
        k_pe = apply_rotary(k_pe.unsqueeze(2), cos, sin, self.rope_interleave).squeeze(2)
        if cache is not None:
            kv, k_pe = update_cache(cache, kv, k_pe, self.layer_idx)
        if self._is_absorb_cheaper(T, kv.shape[1]):
            return self.o_proj(self._attend_absorb(q_nope, q_pe, kv, k_pe, mask, packing))
        return self.o_proj(self._attend_naive(q_nope, q_pe, kv, k_pe, mask, packing))

    def attends_as_rollouts_do(self, x_BTD: torch.Tensor) -> bool:
        """Whether whole sequences attend to their latents, by `add_to`: as the CPU's rollouts do, bit for bit, where
        that costs not much more than expanded heads, which are narrower in large models."""
        q = (self.q_a_proj, self.q_b_proj) if self.has_q_lora else (self.q_proj,)
        linear = (*q, self.kv_a_proj_with_mqa, self.kv_b_proj, self.o_proj)
        if self.path == "naive" or (self.training and self.dropout) or not are_plain(*linear):
            return False
        is_narrow = 2 * (2 * self.kv_lora_rank + self.rope_dim) <= 3 * (self.qk_head_dim + self.v_head_dim)
        has_kernel = x_BTD.device.type == "cpu" and ops.has_kernel(x_BTD, self.o_proj.weight)
        return is_narrow and has_kernel and all(module.bias is None for module in linear)

    def add_to(
        self,
        x_BTD: torch.Tensor,
        norm: PolicyRMSNorm,
        rotary: tuple[torch.Tensor, torch.Tensor],
        packing: Packing | None = None,
    ) -> torch.Tensor:
        """x [B, T, D] -> x + self(norm(x)), without mask and cache, as one operation that keeps little for the
        backward; where `attends_as_rollouts_do`. Hooks of the norm and of the linear layers do not run."""
        B, T, D = x_BTD.shape
        cu_seqlens, length, prefix = _sequences(packing, B, T, x_BTD.device)
        q_norm = self.q_a_layernorm if self.has_q_lora else None
        weights = ops.MlaWeights(
            input_norm=norm.weight,
            q_a=self.q_a_proj.weight if self.has_q_lora else None,
            q_norm=None if q_norm is None else q_norm.weight,
            q_b=(self.q_b_proj if self.has_q_lora else self.q_proj).weight,
            kv_a=self.kv_a_proj_with_mqa.weight,
            kv_norm=self.kv_a_layernorm.weight,
            kv_b=self.kv_b_proj.weight.view(self.num_heads, -1, self.kv_lora_rank),
            o=self.o_proj.weight,
            eps=(norm.eps, 0.0 if q_norm is None else q_norm.eps, self.kv_a_layernorm.eps),
        )
        cos, sin = (x.expand(B, T, 1, -1).reshape(B * T, -1) for x in rotary)
        rest = (cos, sin, self.rope_interleave, cu_seqlens, length, self.scale, prefix)
        return ops.mla_block(x_BTD.reshape(B * T, D), weights, *rest).view(B, T, D)

    def _is_absorb_cheaper(self, T: int, S: int) -> bool:
        if self.path != "auto":
            return self.path == "absorb"
        if self.training and self.dropout:
            return False
        if not are_plain(self.kv_b_proj):  # in FP8 it rounds what it takes, which absorbing would skip
            return False
        expand = self.kv_lora_rank * (self.nope_dim + self.v_head_dim)
        wider = 2 * self.kv_lora_rank - self.nope_dim - self.v_head_dim  # latent heads are wider than real ones
        return T * (expand + S * max(wider, 0)) < S * expand

    def _attend_naive(self, q_nope, q_pe, kv_BSR, pe_BSP, mask, packing) -> torch.Tensor:
        B, S, _ = kv_BSR.shape
        k_nope, v = self.kv_b_proj(kv_BSR).view(B, S, self.num_heads, -1).split([self.nope_dim, self.v_head_dim], -1)
        is_plain = mask is None and q_nope.shape[1] == S and not (self.training and self.dropout)
        if is_plain and ops.has_kernel(q_nope, q_pe, k_nope, pe_BSP, v):
            return self._attend_fused(q_nope, q_pe, k_nope, pe_BSP, v, packing)
        k = torch.cat([k_nope, pe_BSP.unsqueeze(2).expand(-1, -1, self.num_heads, -1)], dim=-1)
        q = torch.cat([q_nope, q_pe], dim=-1)
        if packing is not None:
            q, k, v = (packing.to_sequences(x) for x in (q, k, v))
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and q.shape[1] > 1,
            scale=self.scale,
        )
        out = out.transpose(1, 2).flatten(2)
        return out if packing is None else packing.from_sequences(out)

    def _attend_fused(self, q_nope, q_pe, k_nope, pe_BSP, v, packing) -> torch.Tensor:
        B, S, _ = pe_BSP.shape
        cu_seqlens, length, prefix = _sequences(packing, B, S, v.device)
        heads = (x.flatten(0, 1) for x in (q_nope, q_pe, k_nope, pe_BSP, v))
        return ops.mla_attention(*heads, cu_seqlens, length, self.scale, prefix).view(B, S, -1)

    def _attend_absorb(self, q_nope, q_pe, kv_BSR, pe_BSP, mask, packing) -> torch.Tensor:
        if packing is not None:
            q_nope, q_pe, kv_BSR, pe_BSP = (packing.to_sequences(x) for x in (q_nope, q_pe, kv_BSR, pe_BSP))
        B, T, H, _ = q_nope.shape
        S = kv_BSR.shape[1]
        w_k, w_v = self.kv_b_proj.weight.view(H, -1, self.kv_lora_rank).split([self.nope_dim, self.v_head_dim], dim=1)
        q_latent = torch.einsum("bthn,hnr->bthr", q_nope, w_k).reshape(B, T * H, -1)
        scores = q_latent @ kv_BSR.transpose(1, 2) + q_pe.reshape(B, T * H, -1) @ pe_BSP.transpose(1, 2)
        scores = scores.view(B, T, H, S) * self.scale
        if mask is None and T > 1:
            mask = torch.ones(T, S, dtype=torch.bool, device=kv_BSR.device).tril_()[None, None]
        if mask is not None:
            scores = scores.masked_fill(~mask.transpose(1, 2), float("-inf"))
        probs = scores.softmax(dim=-1, dtype=torch.float32).to(kv_BSR.dtype)
        out_latent = (probs.view(B, T * H, S) @ kv_BSR).view(B, T, H, -1)
        out = torch.einsum("bthr,hvr->bthv", out_latent, w_v).flatten(2)
        return out if packing is None else packing.from_sequences(out)


def _sequences(
    packing: Packing | None, B: int, T: int, device: torch.device
) -> tuple[torch.Tensor, int, torch.Tensor | None]:
    """Bounds of the sequences in B rows of T tokens, the longest one's length, and their prefixes."""
    if packing is None:
        return torch.arange(0, B * T + 1, T, dtype=torch.int32, device=device), T, None
    return packing.cu_seqlens, packing.length, packing.prefix_S


def update_cache(cache, kv_BTR: torch.Tensor, pe_BTP: torch.Tensor, layer_idx: int):
    """Append to a `LatentCache`, or to a transformers `Cache`, which keeps the same latents as one 4-d 'head'."""
    if isinstance(cache, LatentCache):
        return cache.update(kv_BTR, pe_BTP, layer_idx)
    kv, pe = cache.update(kv_BTR.unsqueeze(1), pe_BTP.unsqueeze(1), layer_idx)
    return kv.squeeze(1), pe.squeeze(1)


def build_attention_mask(
    attention_mask_BS: torch.Tensor | None, shape: tuple[int, int], past: int, device: torch.device
) -> torch.Tensor | None:
    """The mask of a call with a cache: None (plainly causal) or bool [B or 1, 1, T, past + T], True = may be seen.

    shape is (B, T) of the new tokens, past how many are cached; attention_mask [B, past + T] has 1 on tokens, 0 on
    padding. Right padding in a prefill needs no mask, since a causal query never sees what stands to its right.
    Raises ValueError when attention_mask is not [B, past + T].
    """
    (B, T), S = shape, past + shape[1]
    keep = None
    if attention_mask_BS is not None:
        if attention_mask_BS.shape != (B, S):
            given = tuple(attention_mask_BS.shape)
            raise ValueError(f"attention_mask has shape {given}, expected (rows, cached + new tokens) = ({B}, {S})")
        keep = attention_mask_BS.bool()
        if past:
            is_free = keep.all()
        else:
            is_free = not (keep[:, 1:] & ~keep[:, :-1]).any()
        keep = None if is_free else keep[:, None, None, :]
    if keep is None and (past == 0 or T == 1):
        return None
    causal = torch.ones(T, S, dtype=torch.bool, device=device).tril_(past)[None, None]
    if keep is None:
        return causal
    # Padding queries see themselves: their output is unused, but a row without any key would be NaN.
    return (causal & keep) | causal.triu(past)
