"""The DeepSeek-V3 gate (V3 report, arXiv:2412.19437, section 2.1.2, equations 12 to 16).

    s = sigmoid(logits);  the choice: top K of s + bias among the topk_group best groups;  w_k = c s_k / sum over k of s

A group scores the sum of its two best biased experts. With S = sum of the chosen s and c = routed_scaling_factor:
    ds_k = c (dw_k / S - sum over j of dw_j s_j / S^2),   dlogit_k = ds_k s_k (1 - s_k),   0 for the others.

A tile holds whole rows of experts, laid out [rows, groups, experts of a group]; the best is taken out K times. NaN
scores count as the best, as in the reference, so the indices stay valid and the weights show the NaN.

T = tokens, E = experts, K = experts per token, G = groups, S = experts of a group.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1lab.kernels.gpu.launch import block, warps

_TILE = 1024
"""Scores of a tile."""


@triton.jit
def _keep_best_groups(choice, topk_group: tl.constexpr, G: tl.constexpr, S: tl.constexpr):
    """-inf outside the groups with the largest sums of their two best; choice [rows, groups, experts of a group]."""
    BLOCK_G: tl.constexpr = choice.shape[1]
    group_scores = tl.max(choice, axis=2)
    if S > 1:
        # The second best: without the first one (the lowest index that reaches the maximum).
        best = tl.argmax(choice, axis=2)
        inner = tl.arange(0, choice.shape[2])[None, None, :]
        group_scores += tl.max(tl.where(inner == best[:, :, None], float("-inf"), choice), axis=2)
    groups = tl.arange(0, BLOCK_G)[None, :]
    group_scores = tl.where(groups < G, group_scores, float("-inf"))
    is_kept = groups < 0
    for _ in tl.static_range(topk_group):
        # +inf for a NaN group must stay the best; groups already kept are out of the running.
        best_group = tl.argmax(tl.where(is_kept, float("-inf"), group_scores), axis=1)
        is_kept = is_kept | (groups == best_group[:, None])
    return tl.where(is_kept[:, :, None], choice, float("-inf"))


@triton.jit
def _gate_kernel(
    logits_ptr, bias_ptr, idx_ptr, weights_ptr, T, stride, scaling,
    G: tl.constexpr, S: tl.constexpr, TOPK_GROUP: tl.constexpr, K: tl.constexpr, NORMALISE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    groups, inner = tl.arange(0, BLOCK_G)[:, None], tl.arange(0, BLOCK_S)[None, :]
    is_expert = (groups < G) & (inner < S)
    experts = groups * S + inner
    mask = (rows < T)[:, None, None] & is_expert[None, :, :]
    logits = tl.load(logits_ptr + rows[:, None, None] * stride + experts[None, :, :], mask=mask, other=0.0)
    scores = tl.sigmoid(logits.to(tl.float32))
    choice = scores + tl.load(bias_ptr + experts, mask=is_expert, other=0.0).to(tl.float32)[None, :, :]
    choice = tl.where(choice == choice, choice, float("inf"))
    choice = tl.where(is_expert[None, :, :], choice, float("-inf"))
    if TOPK_GROUP < G:
        choice = _keep_best_groups(choice, TOPK_GROUP, G, S)
    choice, scores = tl.reshape(choice, [ROWS, BLOCK_G * BLOCK_S]), tl.reshape(scores, [ROWS, BLOCK_G * BLOCK_S])
    columns, slots = tl.arange(0, BLOCK_G * BLOCK_S)[None, :], tl.arange(0, BLOCK_K)[None, :]
    chosen = tl.zeros([ROWS, BLOCK_K], tl.int32)
    weights = tl.zeros([ROWS, BLOCK_K], tl.float32)
    for k in tl.static_range(K):
        best = tl.argmax(choice, axis=1)[:, None]
        score = tl.sum(tl.where(columns == best, scores, 0.0), axis=1)[:, None]
        chosen = tl.where(slots == k, best // BLOCK_S * S + best % BLOCK_S, chosen)
        weights = tl.where(slots == k, score, weights)
        choice = tl.where(columns == best, float("-inf"), choice)
    if NORMALISE:
        weights = weights / (tl.sum(weights, axis=1)[:, None] + 1e-20)
    out_mask = (rows < T)[:, None] & (slots < K)
    tl.store(idx_ptr + rows[:, None] * K + slots, chosen.to(tl.int64), mask=out_mask)
    tl.store(weights_ptr + rows[:, None] * K + slots, weights * scaling, mask=out_mask)


@triton.jit
def _gate_backward_kernel(
    grad_ptr, logits_ptr, idx_ptr, grad_logits_ptr, T, stride, scaling,
    E: tl.constexpr, K: tl.constexpr, NORMALISE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    slots, experts = tl.arange(0, BLOCK_K)[None, :], tl.arange(0, BLOCK_E)[None, :]
    mask = (rows < T)[:, None] & (slots < K)
    idx = tl.load(idx_ptr + rows[:, None] * K + slots, mask=mask, other=0)
    grad = tl.load(grad_ptr + rows[:, None] * K + slots, mask=mask, other=0.0).to(tl.float32) * scaling
    logits = tl.load(logits_ptr + rows[:, None] * stride + idx, mask=mask, other=0.0).to(tl.float32)
    scores = tl.where(mask, tl.sigmoid(logits), 0.0)
    if NORMALISE:
        total = tl.sum(scores, axis=1)[:, None] + 1e-20
        grad = (grad - tl.sum(grad * scores, axis=1)[:, None] / total) / total
    grad = grad * scores * (1.0 - scores)
    # Spread over the experts without a scatter: every element is written once.
    grad_logits = tl.zeros([ROWS, BLOCK_E], tl.float32)
    for k in tl.static_range(K):
        expert = tl.sum(tl.where(slots == k, idx, 0), axis=1)[:, None]
        value = tl.sum(tl.where(slots == k, grad, 0.0), axis=1)[:, None]
        grad_logits = tl.where(experts == expert, value, grad_logits)
    out_mask = (rows < T)[:, None] & (experts < E)
    tl.store(grad_logits_ptr + rows[:, None] * E + experts, grad_logits, mask=out_mask)


def _tiles(width: int) -> dict[str, int]:
    rows = max(1, _TILE // width)
    return {"ROWS": rows, "num_warps": warps(rows * width, per_thread=8, most=8)}


def forward(
    logits_TE: Tensor,
    bias_E: Tensor,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[Tensor, Tensor]:
    """Launch: topk_weights fp32 and topk_idx int64, both [T, K]."""
    logits_TE, bias_E = logits_TE.contiguous(), bias_E.contiguous()
    T, E = logits_TE.shape
    idx_TK = torch.empty(T, top_k, dtype=torch.int64, device=logits_TE.device)
    weights_TK = torch.empty(T, top_k, dtype=torch.float32, device=logits_TE.device)
    if T:
        BLOCK_G, BLOCK_S = block(n_group), block(E // n_group)
        tiles = _tiles(BLOCK_G * BLOCK_S)
        _gate_kernel[(triton.cdiv(T, tiles["ROWS"]),)](
            logits_TE, bias_E, idx_TK, weights_TK, T, logits_TE.stride(0), routed_scaling_factor,
            G=n_group, S=E // n_group, TOPK_GROUP=topk_group, K=top_k, NORMALISE=norm_topk_prob,
            BLOCK_G=BLOCK_G, BLOCK_S=BLOCK_S, BLOCK_K=block(top_k), **tiles,
        )  # fmt: skip
    return weights_TK, idx_TK


def backward(
    grad_weights: Tensor, logits_TE: Tensor, topk_idx_TK: Tensor, norm_topk_prob: bool, routed_scaling_factor: float
) -> Tensor:
    """Launch: gradient of the logits."""
    grad_weights, logits_TE = grad_weights.contiguous(), logits_TE.contiguous()
    T, E = logits_TE.shape
    K = topk_idx_TK.shape[1]
    grad_logits = torch.empty(T, E, dtype=logits_TE.dtype, device=logits_TE.device)
    if T:
        tiles = _tiles(block(E))
        _gate_backward_kernel[(triton.cdiv(T, tiles["ROWS"]),)](
            grad_weights, logits_TE, topk_idx_TK.contiguous(), grad_logits, T, logits_TE.stride(0),
            routed_scaling_factor, E=E, K=K, NORMALISE=norm_topk_prob, BLOCK_E=block(E), BLOCK_K=block(K), **tiles,
        )  # fmt: skip
    return grad_logits


_op = torch.library.custom_op("r1lab_gpu::moe_gate", forward, mutates_args=())
_backward_op = torch.library.custom_op("r1lab_gpu::moe_gate_backward", backward, mutates_args=())


@_op.register_fake
def _(logits, bias, n_group, topk_group, top_k, norm_topk_prob, routed_scaling_factor):
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int64)


@_backward_op.register_fake
def _(grad_weights, logits, topk_idx, norm_topk_prob, routed_scaling_factor):
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output):
    logits, _, _, _, _, ctx.norm_topk_prob, ctx.routed_scaling_factor = inputs
    ctx.save_for_backward(logits, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_weights, _grad_idx):
    grad_logits = None
    if grad_weights is not None:
        grad_logits = _backward_op(grad_weights, *ctx.saved_tensors, ctx.norm_topk_prob, ctx.routed_scaling_factor)
    return grad_logits, None, None, None, None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


def moe_gate(
    logits_TE: Tensor,
    bias_E: Tensor,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[Tensor, Tensor]:
    """As `ops.moe_gate`, for logits in `launch.DTYPES`; the weights are fp32."""
    weights_TK, idx_TK = _op(
        logits_TE, bias_E, n_group, topk_group, top_k, norm_topk_prob, float(routed_scaling_factor)
    )
    return idx_TK, weights_TK
