"""The routed SwiGLU experts as grouped matrix products (V3 report, arXiv:2412.19437, equation 12, routed part).

    y_t = sum over k of w_tk down_e (silu(gate_e x_t) * up_e x_t),    e = topk_idx[t, k]

Pairs (token, choice) are sorted by expert, and a tile never mixes experts (MegaBlocks, Gale et al., 2022,
arXiv:2211.15841, with tiles cut at expert boundaries instead of padding). How many tiles an expert needs is worked out
on the device, so nothing waits for the GPU: the grid has the most tiles there can be, and the spare ones return at
once. Per pair p, with h = silu(gate) * up and g = down_e^T dy_t:

    dw_p = g . h,   dh = w_p g,   dgate = dh up silu'(gate),   dup = dh silu(gate),
    dx_t = sum over k of gate_up_e^T [dgate; dup],
    dgate_up_e = sum of [dgate; dup] x^T,   ddown_e = sum of dy (w h)^T.

Sums over k and over pairs run in a fixed order, without atomics: the same bits every time.

T = tokens, D = hidden, E = experts, F = expert intermediate, K = experts per token, P = T * K pairs sorted by expert.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1lab.kernels.gpu.launch import block, dot_precision, unit_stride


@triton.jit
def _tile_rows(tile_expert_ptr, tile_first_ptr, offsets_ptr, BLOCK_P: tl.constexpr):
    """The expert of this program's tile of pairs, its rows of the sorted pairs, and which of them exist."""
    tile = tl.program_id(0)
    expert = tl.load(tile_expert_ptr + tile).to(tl.int64)
    rows = tl.load(tile_first_ptr + tile).to(tl.int64) + tl.arange(0, BLOCK_P)
    return expert, rows, rows < tl.load(offsets_ptr + expert + 1)


@triton.jit
def _gate_up_kernel(
    x_ptr, pairs_ptr, tile_expert_ptr, tile_first_ptr, offsets_ptr, gate_up_ptr, kept_ptr, hidden_ptr, x_t, D, F,
    E: tl.constexpr, K: tl.constexpr, KEEP: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """hidden [P, F] = silu(x gate^T) * (x up^T); kept [P, 2F] = gate and up before the product."""
    if tl.load(tile_expert_ptr + tl.program_id(0)) == E:
        return
    expert, rows, row_mask = _tile_rows(tile_expert_ptr, tile_first_ptr, offsets_ptr, BLOCK_P)
    tokens = tl.load(pairs_ptr + rows, mask=row_mask, other=0) // K
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    weight_ptr = gate_up_ptr + expert * (2 * F * D) + columns.to(tl.int64)[:, None] * D
    gate = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    up = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    for first in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        inner_mask = (first + inner < D)[None, :]
        weight_mask = (columns < F)[:, None] & inner_mask
        x = tl.load(
            x_ptr + tokens[:, None] * x_t + first + inner[None, :], mask=row_mask[:, None] & inner_mask, other=0.0
        )
        gate_weight = tl.load(weight_ptr + first + inner[None, :], mask=weight_mask, other=0.0)
        gate = tl.dot(x, tl.trans(gate_weight), gate, input_precision=PRECISION)
        up_weight = tl.load(weight_ptr + F * D + first + inner[None, :], mask=weight_mask, other=0.0)
        up = tl.dot(x, tl.trans(up_weight), up, input_precision=PRECISION)
    mask = row_mask[:, None] & (columns < F)[None, :]
    if KEEP:
        tl.store(kept_ptr + rows[:, None] * (2 * F) + columns[None, :], gate, mask=mask)
        tl.store(kept_ptr + rows[:, None] * (2 * F) + F + columns[None, :], up, mask=mask)
    tl.store(hidden_ptr + rows[:, None] * F + columns[None, :], gate * tl.sigmoid(gate) * up, mask=mask)


@triton.jit
def _rows_kernel(
    a_ptr, pairs_ptr, tile_expert_ptr, tile_first_ptr, offsets_ptr, b_ptr, weights_ptr, out_ptr,
    num_columns, num_inner, b_e, b_n, b_k, E: tl.constexpr, WEIGHTED: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out[pair] = a[row] b_e^T, times the pair's weight when WEIGHTED; b is [E, columns, inner] by its strides."""
    if tl.load(tile_expert_ptr + tl.program_id(0)) == E:
        return
    expert, rows, row_mask = _tile_rows(tile_expert_ptr, tile_first_ptr, offsets_ptr, BLOCK_P)
    pairs = tl.load(pairs_ptr + rows, mask=row_mask, other=0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    column_mask = columns < num_columns
    weight_ptr = b_ptr + expert * b_e + columns.to(tl.int64)[None, :] * b_n
    out = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    for first in tl.range(0, num_inner, BLOCK_K, num_stages=STAGES):
        inner_mask = first + inner < num_inner
        a = tl.load(
            a_ptr + rows[:, None] * num_inner + first + inner[None, :],
            mask=row_mask[:, None] & inner_mask[None, :], other=0.0,
        )  # fmt: skip
        b = tl.load(
            weight_ptr + (first + inner).to(tl.int64)[:, None] * b_k,
            mask=inner_mask[:, None] & column_mask[None, :], other=0.0,
        )  # fmt: skip
        out = tl.dot(a, b, out, input_precision=PRECISION)
    if WEIGHTED:
        out = out * tl.load(weights_ptr + pairs, mask=row_mask, other=0.0).to(tl.float32)[:, None]
    out_mask = row_mask[:, None] & column_mask[None, :]
    tl.store(out_ptr + pairs[:, None] * num_columns + columns[None, :], out, mask=out_mask)


@triton.jit
def _grad_hidden_kernel(
    grad_y_ptr, pairs_ptr, tile_expert_ptr, tile_first_ptr, offsets_ptr, down_ptr, weights_ptr, kept_ptr,
    grad_kept_ptr, weighted_ptr, partial_ptr, grad_t, D, F, num_partials,
    E: tl.constexpr, K: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """g = dy down, then everything per pair that follows: [dgate; dup], w h, and this tile's share of dw."""
    if tl.load(tile_expert_ptr + tl.program_id(0)) == E:
        return
    expert, rows, row_mask = _tile_rows(tile_expert_ptr, tile_first_ptr, offsets_ptr, BLOCK_P)
    pairs = tl.load(pairs_ptr + rows, mask=row_mask, other=0)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inner = tl.arange(0, BLOCK_K)
    grad = tl.zeros([BLOCK_P, BLOCK_N], tl.float32)
    for first in tl.range(0, D, BLOCK_K, num_stages=STAGES):
        inner_mask = first + inner < D
        grad_y = tl.load(
            grad_y_ptr + (pairs // K)[:, None] * grad_t + first + inner[None, :],
            mask=row_mask[:, None] & inner_mask[None, :], other=0.0,
        )  # fmt: skip
        down = tl.load(
            down_ptr + expert * (D * F) + (first + inner).to(tl.int64)[:, None] * F + columns[None, :],
            mask=inner_mask[:, None] & (columns < F)[None, :], other=0.0,
        )  # fmt: skip
        grad = tl.dot(grad_y, down, grad, input_precision=PRECISION)
    mask = row_mask[:, None] & (columns < F)[None, :]
    kept = rows[:, None] * (2 * F) + columns[None, :]
    gate = tl.load(kept_ptr + kept, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(kept_ptr + kept + F, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weights_ptr + pairs, mask=row_mask, other=0.0).to(tl.float32)[:, None]
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(partial_ptr + pairs * num_partials + tl.program_id(1), tl.sum(grad * silu * up, axis=1), mask=row_mask)
    tl.store(weighted_ptr + rows[:, None] * F + columns[None, :], weight * silu * up, mask=mask)
    grad = grad * weight
    grad_gate = grad * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(grad_kept_ptr + kept, grad_gate, mask=mask)
    tl.store(grad_kept_ptr + kept + F, grad * silu, mask=mask)


@triton.jit
def _weight_grad_kernel(
    a_ptr, b_ptr, pairs_ptr, offsets_ptr, out_ptr, num_rows, num_columns, a_p, b_p,
    K: tl.constexpr, A_BY_TOKEN: tl.constexpr, B_BY_TOKEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out_e [rows, columns] = sum over the expert's pairs of a_p^T b_p; an operand may lie by token, not by pair."""
    expert = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    start, end = tl.load(offsets_ptr + expert), tl.load(offsets_ptr + expert + 1)
    out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in tl.range(start, end, BLOCK_K, num_stages=STAGES):
        rows = (first + tl.arange(0, BLOCK_K)).to(tl.int64)
        row_mask = (rows < end)[:, None]
        a_rows, b_rows = rows, rows
        if A_BY_TOKEN:
            a_rows = tl.load(pairs_ptr + rows, mask=rows < end, other=0) // K
        if B_BY_TOKEN:
            b_rows = tl.load(pairs_ptr + rows, mask=rows < end, other=0) // K
        a = tl.load(a_ptr + a_rows[:, None] * a_p + m[None, :], mask=row_mask & (m < num_rows)[None, :], other=0.0)
        b = tl.load(b_ptr + b_rows[:, None] * b_p + n[None, :], mask=row_mask & (n < num_columns)[None, :], other=0.0)
        out = tl.dot(tl.trans(a), b, out, input_precision=PRECISION)
    mask = (m < num_rows)[:, None] & (n < num_columns)[None, :]
    out_ptr += expert * num_rows * num_columns
    tl.store(out_ptr + m.to(tl.int64)[:, None] * num_columns + n[None, :], out, mask=mask)


@dataclass(frozen=True, slots=True)
class _Groups:
    """Pairs sorted by expert, and the tiles over them; all on the device."""

    pairs_P: Tensor
    """int64: which (token * K + choice) stands at each sorted row."""
    offsets_E1: Tensor
    """int64 [E + 1]: expert e's rows are offsets[e] .. offsets[e + 1] - 1."""
    tile_expert: Tensor
    """int64 per tile; E: a spare tile."""
    tile_first: Tensor
    """int64 per tile: its first row."""

    @property
    def tiles(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.pairs_P, self.tile_expert, self.tile_first, self.offsets_E1


def _group(topk_idx_TK: Tensor, E: int, BLOCK_P: int) -> _Groups:
    sorted_P, pairs_P = topk_idx_TK.reshape(-1).sort(stable=True)
    experts = torch.arange(E + 1, device=sorted_P.device)
    offsets = torch.searchsorted(sorted_P, experts)
    ends = ((offsets.diff() + BLOCK_P - 1) // BLOCK_P).cumsum(0)  # number of tiles up to and with expert e
    most = triton.cdiv(sorted_P.numel(), BLOCK_P) + E  # each expert leaves at most one tile unfilled
    tiles = torch.arange(most, device=sorted_P.device)
    expert = torch.searchsorted(ends, tiles, right=True)
    starts = torch.nn.functional.pad(ends, (1, 0))
    first = offsets[expert] + (tiles - starts[expert]) * BLOCK_P
    return _Groups(pairs_P, offsets, expert, first)


def _tiles(dtype: torch.dtype, least_inner: int) -> dict[str, int]:
    """Chosen so that nothing spills; least_inner: the smallest dimension that is summed over."""
    if dtype == torch.float32:
        return {"BLOCK_P": 32, "BLOCK_N": 64, "BLOCK_K": min(32, block(least_inner, 16)), "STAGES": 2, "num_warps": 4}
    return {"BLOCK_P": 64, "BLOCK_N": 128, "BLOCK_K": min(64, block(least_inner, 16)), "STAGES": 3, "num_warps": 8}


def forward(
    x_TD: Tensor, topk_idx_TK: Tensor, topk_weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor, keep: bool
) -> tuple[Tensor, Tensor]:
    """Launch: y [T, D], and gate and up of every sorted pair [P, 2F] for the backward (keep=False: empty)."""
    x_TD, topk_weights_TK = unit_stride(x_TD), topk_weights_TK.contiguous()
    gate_up_E2FD, down_EDF = gate_up_E2FD.contiguous(), down_EDF.contiguous()
    (T, D), (E, _, F), K = x_TD.shape, down_EDF.shape, topk_idx_TK.shape[1]
    kept_P2F = torch.empty(T * K if keep else 0, 2 * F, dtype=x_TD.dtype, device=x_TD.device)
    if T == 0:
        return torch.empty(x_TD.shape, dtype=x_TD.dtype, device=x_TD.device), kept_P2F
    tiles = _tiles(x_TD.dtype, min(D, F))
    groups = _group(topk_idx_TK, E, tiles["BLOCK_P"])
    hidden_PF = torch.empty(T * K, F, dtype=x_TD.dtype, device=x_TD.device)
    per_pair_TKD = torch.empty(T, K, D, dtype=x_TD.dtype, device=x_TD.device)
    num_tiles = groups.tile_expert.shape[0]
    _gate_up_kernel[(num_tiles, triton.cdiv(F, tiles["BLOCK_N"]))](
        x_TD, *groups.tiles, gate_up_E2FD, kept_P2F, hidden_PF, x_TD.stride(0), D, F,
        E=E, K=K, KEEP=keep, PRECISION=dot_precision(), **tiles,
    )  # fmt: skip
    _rows_kernel[(num_tiles, triton.cdiv(D, tiles["BLOCK_N"]))](
        hidden_PF, *groups.tiles, down_EDF, topk_weights_TK, per_pair_TKD, D, F, *down_EDF.stride(),
        E=E, WEIGHTED=True, PRECISION=dot_precision(), **tiles,
    )  # fmt: skip
    return per_pair_TKD.sum(1), kept_P2F


def backward(
    grad_y: Tensor,
    x_TD: Tensor,
    topk_idx_TK: Tensor,
    topk_weights_TK: Tensor,
    gate_up_E2FD: Tensor,
    down_EDF: Tensor,
    kept_P2F: Tensor,
    needs_x: bool,
    needs_gate_up: bool,
    needs_down: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Launch: gradients of x, topk_weights, gate_up and down; one that is not needed comes back empty."""
    x_TD, grad_y, topk_weights_TK = unit_stride(x_TD), unit_stride(grad_y), topk_weights_TK.contiguous()
    gate_up_E2FD, down_EDF = gate_up_E2FD.contiguous(), down_EDF.contiguous()
    (T, D), (E, _, F), K = x_TD.shape, down_EDF.shape, topk_idx_TK.shape[1]
    tiles, numbers = _tiles(x_TD.dtype, min(D, F)), {"dtype": x_TD.dtype, "device": x_TD.device}
    groups = _group(topk_idx_TK, E, tiles["BLOCK_P"])
    narrow = tiles | {"BLOCK_N": 64}  # what follows the product needs registers, too
    num_tiles, num_partials = groups.tile_expert.shape[0], triton.cdiv(F, narrow["BLOCK_N"])
    grad_kept_P2F, weighted_PF = torch.empty(T * K, 2 * F, **numbers), torch.empty(T * K, F, **numbers)
    partials = torch.empty(T, K, num_partials, dtype=torch.float32, device=x_TD.device)
    if T:
        _grad_hidden_kernel[(num_tiles, num_partials)](
            grad_y, *groups.tiles, down_EDF, topk_weights_TK, kept_P2F, grad_kept_P2F, weighted_PF, partials,
            grad_y.stride(0), D, F, num_partials, E=E, K=K, PRECISION=dot_precision(), **narrow,
        )  # fmt: skip
    grad_x = torch.empty(x_TD.shape if needs_x else (0,), **numbers)
    if needs_x and T:
        per_pair_TKD = torch.empty(T, K, D, **numbers)
        e, f, d = gate_up_E2FD.stride()
        _rows_kernel[(num_tiles, triton.cdiv(D, tiles["BLOCK_N"]))](
            grad_kept_P2F, *groups.tiles, gate_up_E2FD, topk_weights_TK, per_pair_TKD, D, 2 * F, e, d, f,
            E=E, WEIGHTED=False, PRECISION=dot_precision(), **tiles,
        )  # fmt: skip
        grad_x = per_pair_TKD.sum(1)
    grad_gate_up = torch.empty(gate_up_E2FD.shape if needs_gate_up else (0,), **numbers)
    if needs_gate_up:
        _weight_grad(grad_kept_P2F, x_TD, groups, grad_gate_up, K, a_by_token=False)
    grad_down = torch.empty(down_EDF.shape if needs_down else (0,), **numbers)
    if needs_down:
        _weight_grad(grad_y, weighted_PF, groups, grad_down, K, a_by_token=True)
    return grad_x, partials.sum(2).to(topk_weights_TK.dtype), grad_gate_up, grad_down


def _weight_grad(a: Tensor, b: Tensor, groups: _Groups, out: Tensor, K: int, a_by_token: bool) -> None:
    """out[e] = sum over the expert's pairs of a^T b; zero for an expert without tokens."""
    E, num_rows, num_columns = out.shape
    tiles = _weight_grad_tiles(out.dtype)
    grid = (triton.cdiv(num_rows, tiles["BLOCK_M"]), triton.cdiv(num_columns, tiles["BLOCK_N"]), E)
    _weight_grad_kernel[grid](
        a, b, groups.pairs_P, groups.offsets_E1, out, num_rows, num_columns, a.stride(0), b.stride(0),
        K=K, A_BY_TOKEN=a_by_token, B_BY_TOKEN=not a_by_token, PRECISION=dot_precision(), **tiles,
    )  # fmt: skip


def _weight_grad_tiles(dtype: torch.dtype) -> dict[str, int]:
    if dtype == torch.float32:
        return {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "STAGES": 2, "num_warps": 4}
    return {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "STAGES": 3, "num_warps": 8}


_op = torch.library.custom_op("r1lab_gpu::moe_experts", forward, mutates_args=())
_backward_op = torch.library.custom_op("r1lab_gpu::moe_experts_backward", backward, mutates_args=())


@_op.register_fake
def _(x, topk_idx, topk_weights, gate_up, down, keep):
    return x.new_empty(x.shape), x.new_empty(topk_idx.numel() if keep else 0, gate_up.shape[1])


@_backward_op.register_fake
def _(grad_y, x, topk_idx, topk_weights, gate_up, down, kept, needs_x, needs_gate_up, needs_down):
    needs = ((x, needs_x), (topk_weights, True), (gate_up, needs_gate_up), (down, needs_down))
    return tuple(tensor.new_empty(tensor.shape if needed else (0,)) for tensor, needed in needs)


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:-1], output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, _grad_kept):
    if grad_y is None:
        return (None,) * 6
    saved = ctx.saved_tensors  # once: gradient checkpointing gives the tensors out a single time
    if saved[5].shape[0] != saved[1].numel():
        raise RuntimeError("r1lab_gpu::moe_experts ran with keep=False; pass keep=True to differentiate it")
    needs_x, _, needs_weights, needs_gate_up, needs_down, _ = ctx.needs_input_grad
    grads = _backward_op(grad_y, *saved, needs_x, needs_gate_up, needs_down)
    x, weights, gate_up, down = (
        grad if needed else None
        for grad, needed in zip(grads, (needs_x, needs_weights, needs_gate_up, needs_down), strict=True)
    )
    return x, None, weights, gate_up, down, None


_op.register_autograd(_backward, setup_context=_setup_context)


def moe_experts(
    x_TD: Tensor, topk_idx_TK: Tensor, topk_weights_TK: Tensor, gate_up_E2FD: Tensor, down_EDF: Tensor
) -> Tensor:
    """As `ops.moe_experts`, for x, gate_up and down of one dtype in `launch.DTYPES`; topk_weights may be fp32.

    An expert number outside 0..E-1 is not looked for: the result is undefined.
    """
    floats = (x_TD, topk_weights_TK, gate_up_E2FD, down_EDF)
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in floats)
    return _op(x_TD, topk_idx_TK, topk_weights_TK, gate_up_E2FD, down_EDF, keep)[0]
