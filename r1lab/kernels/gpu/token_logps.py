"""Log-probabilities of given tokens and the entropy, from hidden states, without the [T, V] logits.

With l = hidden . head^T / temperature, per token and over the vocabulary:
    logp = l_target - lse,   H = lse - sum p l = log s - u / s,
    m = max l,   s = sum exp(l - m),   u = sum exp(l - m) (l - m)
(s, u and m merge over pieces of the vocabulary: the online softmax of Milakov and Gimelshein, 2018, arXiv:1805.02867,
algorithm 3, with one more sum for the entropy.) With g the gradient of logp:
    dl = g (onehot(target) - p) / temperature,   dhidden = dl . head,   dhead = dl^T . hidden.

Forward: each program multiplies one block of tokens with one slice of the vocabulary, keeps m, s, u, and a second
kernel merges the slices. A slice is a fixed number of tokens of the vocabulary, so a token's result depends neither on
the batch nor on the card. Backward: dl is rebuilt for a chunk of the vocabulary at a time (the formula above, from the
saved lse), and the two products are plain GEMMs, left to cuBLAS: 3 GEMMs in all, the least there can be, where a fully
fused kernel would rebuild dl once per tile of D.

T = tokens, D = hidden, V = vocabulary, S = slices of the vocabulary, C = vocabulary of a chunk.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1lab.kernels.gpu.launch import block, dot_precision

_SLICE = 2048
"""Vocabulary entries a program of the forward goes through."""
_CHUNK_ELEMENTS = 1 << 27
"""Elements of dl that the backward holds at a time: 256 MB in bf16."""


@triton.jit
def _logits_tile(
    hidden_ptr, head_ptr, rows, columns, row_mask, column_mask, D, scale,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """[BLOCK_T, BLOCK_V] logits in fp32, -inf beyond the vocabulary."""
    inner = tl.arange(0, BLOCK_D)
    logits = tl.zeros([BLOCK_T, BLOCK_V], tl.float32)
    for first in tl.range(0, D, BLOCK_D, num_stages=STAGES):
        inner_mask = (first + inner < D)[None, :]
        hidden = tl.load(
            hidden_ptr + rows[:, None] * D + first + inner[None, :], mask=row_mask[:, None] & inner_mask, other=0.0
        )
        head = tl.load(
            head_ptr + columns[:, None] * D + first + inner[None, :], mask=column_mask[:, None] & inner_mask, other=0.0
        )
        logits = tl.dot(hidden, tl.trans(head), logits, input_precision=PRECISION)
    return tl.where(column_mask[None, :], logits * scale, float("-inf"))


@triton.jit
def _slices_kernel(
    hidden_ptr, head_ptr, targets_ptr, top_ptr, sum_ptr, entropy_sum_ptr, target_ptr, T, D, V, num_slices, scale,
    SLICE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # Token blocks vary fastest: programs that run together read the same slice of the head.
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    row_mask = rows < T
    targets = tl.load(targets_ptr + rows, mask=row_mask, other=-1)
    top = tl.full([BLOCK_T], -1e30, tl.float32)  # finite: the difference of two of them is no NaN
    total = tl.zeros([BLOCK_T], tl.float32)
    weighted = tl.zeros([BLOCK_T], tl.float32)
    first_slice = tl.program_id(1) * SLICE
    for first in range(first_slice, tl.minimum(first_slice + SLICE, V), BLOCK_V):
        columns = (first + tl.arange(0, BLOCK_V)).to(tl.int64)
        column_mask = columns < V
        logits = _logits_tile(
            hidden_ptr, head_ptr, rows, columns, row_mask, column_mask, D, scale,
            BLOCK_T, BLOCK_V, BLOCK_D, PRECISION, STAGES,
        )  # fmt: skip
        new_top = tl.maximum(top, tl.max(logits, axis=1))
        shift, below = top - new_top, logits - new_top[:, None]
        exps = tl.exp(below)
        shrink = tl.exp(shift)
        weighted = (weighted + total * shift) * shrink
        weighted += tl.sum(tl.where(column_mask[None, :], exps * below, 0.0), axis=1)
        total = total * shrink + tl.sum(exps, axis=1)
        top = new_top
        is_target = columns[None, :] == targets[:, None]
        target = tl.sum(tl.where(is_target, logits, 0.0), axis=1)
        in_tile = (targets >= first) & (targets < first + BLOCK_V)
        tl.store(target_ptr + rows, target, mask=row_mask & in_tile)
    out = rows * num_slices + tl.program_id(1)
    tl.store(top_ptr + out, top, mask=row_mask)
    tl.store(sum_ptr + out, total, mask=row_mask)
    tl.store(entropy_sum_ptr + out, weighted, mask=row_mask)


@triton.jit
def _merge_kernel(
    top_ptr, sum_ptr, entropy_sum_ptr, target_ptr, logps_ptr, entropy_ptr, lse_ptr, T, num_slices,
    BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    rows, slices = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_S)
    row_mask = rows < T
    mask = row_mask[:, None] & (slices < num_slices)[None, :]
    offsets = rows[:, None] * num_slices + slices[None, :]
    tops = tl.load(top_ptr + offsets, mask=mask, other=-1e30)
    totals = tl.load(sum_ptr + offsets, mask=mask, other=0.0)
    weighted = tl.load(entropy_sum_ptr + offsets, mask=mask, other=0.0)
    top = tl.max(tops, axis=1)
    shift = tops - top[:, None]
    shrink = tl.exp(shift)
    total = tl.sum(totals * shrink, axis=1)
    weighted = tl.sum((weighted + totals * shift) * shrink, axis=1)
    lse = top + tl.log(total)
    target = tl.load(target_ptr + rows, mask=row_mask, other=0.0)
    tl.store(logps_ptr + rows, target - lse, mask=row_mask)
    tl.store(entropy_ptr + rows, tl.log(total) - weighted / total, mask=row_mask)
    tl.store(lse_ptr + rows, lse, mask=row_mask)


@triton.jit
def _grad_logits_kernel(
    hidden_ptr, head_ptr, targets_ptr, lse_ptr, grad_ptr, out_ptr, T, D, first_column, end_column, scale,
    BLOCK_T: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dl [T, C] of the columns first_column .. end_column - 1."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = (first_column + tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)).to(tl.int64)
    row_mask, column_mask = rows < T, columns < end_column
    logits = _logits_tile(
        hidden_ptr, head_ptr, rows, columns, row_mask, column_mask, D, scale,
        BLOCK_T, BLOCK_V, BLOCK_D, PRECISION, STAGES,
    )  # fmt: skip
    lse = tl.load(lse_ptr + rows, mask=row_mask, other=0.0)
    grad = tl.load(grad_ptr + rows, mask=row_mask, other=0.0).to(tl.float32) * scale
    targets = tl.load(targets_ptr + rows, mask=row_mask, other=-1)
    hit = tl.where(columns[None, :] == targets[:, None], 1.0, 0.0)
    grad_logits = grad[:, None] * (hit - tl.exp(logits - lse[:, None]))
    # A token without gradient stays without, whatever its logits are (0 * NaN).
    grad_logits = tl.where(grad[:, None] == 0.0, 0.0, grad_logits)
    out = rows[:, None] * (end_column - first_column) + (columns - first_column)[None, :]
    tl.store(out_ptr + out, grad_logits, mask=row_mask[:, None] & column_mask[None, :])


def _tiles(dtype: torch.dtype, D: int) -> dict[str, int]:
    """Chosen so that nothing spills."""
    if dtype == torch.float32:
        return {"BLOCK_T": 64, "BLOCK_V": 64, "BLOCK_D": min(32, block(D, 16)), "STAGES": 2, "num_warps": 4}
    return {"BLOCK_T": 128, "BLOCK_V": 128, "BLOCK_D": min(64, block(D, 16)), "STAGES": 3, "num_warps": 8}


def forward(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Launch: logps, entropy and log-sum-exp, fp32 [T]."""
    hidden_TD, head_VD, targets_T = hidden_TD.contiguous(), head_VD.contiguous(), targets_T.contiguous()
    (T, D), V = hidden_TD.shape, head_VD.shape[0]
    num_slices = triton.cdiv(V, _SLICE)
    numbers = {"dtype": torch.float32, "device": hidden_TD.device}
    tops, sums, entropy_sums = (torch.empty(T, num_slices, **numbers) for _ in range(3))
    target_logits, logps, entropy, lse = (torch.empty(T, **numbers) for _ in range(4))
    if T:
        tiles = _tiles(hidden_TD.dtype, D)
        _slices_kernel[(triton.cdiv(T, tiles["BLOCK_T"]), num_slices)](
            hidden_TD, head_VD, targets_T, tops, sums, entropy_sums, target_logits, T, D, V, num_slices,
            1.0 / temperature, SLICE=_SLICE, PRECISION=dot_precision(), **tiles,
        )  # fmt: skip
        _merge_kernel[(triton.cdiv(T, 16),)](
            tops, sums, entropy_sums, target_logits, logps, entropy, lse, T, num_slices,
            BLOCK_T=16, BLOCK_S=block(num_slices),
        )  # fmt: skip
    return logps, entropy, lse


def backward(
    grad_logps: Tensor,
    hidden_TD: Tensor,
    head_VD: Tensor,
    targets_T: Tensor,
    lse_T: Tensor,
    temperature: float,
    needs_hidden: bool,
    needs_head: bool,
) -> tuple[Tensor, Tensor]:
    """Launch: gradients of hidden and head; one that is not needed comes back empty."""
    grad_logps, targets_T = grad_logps.contiguous(), targets_T.contiguous()
    hidden_TD, head_VD = hidden_TD.contiguous(), head_VD.contiguous()
    (T, D), V = hidden_TD.shape, head_VD.shape[0]
    # fp32 while chunks are added up; the head's rows are each written once.
    grad_hidden = torch.zeros(hidden_TD.shape if needs_hidden else (0,), dtype=torch.float32, device=hidden_TD.device)
    grad_head = torch.empty(head_VD.shape if needs_head else (0,), dtype=head_VD.dtype, device=head_VD.device)
    tiles = _tiles(hidden_TD.dtype, D)
    columns = max(tiles["BLOCK_V"], _CHUNK_ELEMENTS // max(1, T) // 128 * 128)
    for first in range(0, V, columns):
        end = min(V, first + columns)
        grad_logits_TC = torch.empty(T, end - first, dtype=hidden_TD.dtype, device=hidden_TD.device)
        if T:
            grid = (triton.cdiv(T, tiles["BLOCK_T"]), triton.cdiv(end - first, tiles["BLOCK_V"]))
            _grad_logits_kernel[grid](
                hidden_TD, head_VD, targets_T, lse_T, grad_logps, grad_logits_TC, T, D, first, end,
                1.0 / temperature, PRECISION=dot_precision(), **tiles,
            )  # fmt: skip
        if needs_hidden:
            grad_hidden += grad_logits_TC @ head_VD[first:end]
        if needs_head:
            torch.mm(grad_logits_TC.t(), hidden_TD, out=grad_head[first:end])
    return grad_hidden.to(hidden_TD.dtype), grad_head


_op = torch.library.custom_op("r1lab_gpu::token_logps", forward, mutates_args=())
_backward_op = torch.library.custom_op("r1lab_gpu::token_logps_backward", backward, mutates_args=())


@_op.register_fake
def _(hidden, head, targets, temperature):
    return tuple(hidden.new_empty(targets.shape, dtype=torch.float32) for _ in range(3))


@_backward_op.register_fake
def _(grad_logps, hidden, head, targets, lse, temperature, needs_hidden, needs_head):
    return hidden.new_empty(hidden.shape if needs_hidden else (0,)), head.new_empty(head.shape if needs_head else (0,))


def _setup_context(ctx, inputs, output):
    hidden, head, targets, ctx.temperature = inputs
    ctx.save_for_backward(hidden, head, targets, output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_logps, _grad_entropy, _grad_lse):
    if grad_logps is None:
        return None, None, None, None
    needs_hidden, needs_head, _, _ = ctx.needs_input_grad
    grad_hidden, grad_head = _backward_op(grad_logps, *ctx.saved_tensors, ctx.temperature, needs_hidden, needs_head)
    return grad_hidden if needs_hidden else None, grad_head if needs_head else None, None, None


_op.register_autograd(_backward, setup_context=_setup_context)


def token_logps(hidden_TD: Tensor, head_VD: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """As `ops.token_logps`, for hidden and head of one dtype in `launch.DTYPES`; the results are fp32.

    A target outside 0..V-1 is not looked for: its logp is undefined.
    """
    logps_T, entropy_T, _ = _op(hidden_TD, head_VD, targets_T, float(temperature))
    return logps_T, entropy_T
