"""One decode step of absorbed multi-head latent attention over a paged latent cache (DeepSeek-V2, section 2.1.2).

    context_b = sum over j < length_b of softmax_j(scale (q_latent_b . kv_j + q_pe_b . pe_j)) kv_j

With the key half of kv_b folded into the query, all heads read the same latents, as keys and as values: a program loads
a tile of them once for a block of heads. Few rows leave a GPU idle, so the positions are split among programs
(Flash-Decoding, Dao et al., 2023) and a second kernel merges the parts by their log-sum-exp. Where a split ends depends
on the model and the width of the page table, never on the batch: a row has the same bits in any company.

B = rows, H = heads, C = kv_lora_rank, R = qk_rope_head_dim, N = pages in the pool, S = positions of a page, P = pages
of a row's table, Z = splits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1lab.kernels.gpu.launch import block, dot_precision, has_large_tiles, warps

_LOG2_E = 1.4426950408889634
_LEAST_SPLIT = 256
"""A split has this many positions or a multiple of it."""
_MOST_SPLITS = 32


@triton.jit
def _load_latents(ptr, slots, mask, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    mask = mask[:, None]
    if SIZE != BLOCK:
        mask = mask & (columns < SIZE)[None, :]
    return tl.load(ptr + slots[:, None] * SIZE + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _split_kernel(
    q_latent_ptr, q_pe_ptr, kv_ptr, pe_ptr, table_ptr, lengths_ptr, part_ptr, lse_ptr, scale_log2, table_stride, SPLIT,
    H: tl.constexpr, C: tl.constexpr, R: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_S: tl.constexpr,
    PRECISION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    row, split = tl.program_id(1).to(tl.int64), tl.program_id(2)
    first = split * SPLIT
    end = tl.minimum(first + SPLIT, tl.load(lengths_ptr + row))
    if first >= end:
        return
    heads = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    head_mask = heads < H
    q_latent = _load_latents(q_latent_ptr + row * H * C, heads, head_mask, C, BLOCK_C)
    q_pe = _load_latents(q_pe_ptr + row * H * R, heads, head_mask, R, BLOCK_R)
    top = tl.full([BLOCK_H], -1e30, tl.float32)  # finite: the difference of two of them is no NaN
    total = tl.zeros([BLOCK_H], tl.float32)
    context = tl.zeros([BLOCK_H, BLOCK_C], tl.float32)
    for start in tl.range(first, end, BLOCK_S, num_stages=STAGES):
        positions = start + tl.arange(0, BLOCK_S)
        mask = positions < end
        pages = tl.load(table_ptr + row * table_stride + positions // PAGE, mask=mask, other=0).to(tl.int64)
        slots = pages * PAGE + positions % PAGE
        kv = _load_latents(kv_ptr, slots, mask, C, BLOCK_C)
        pe = _load_latents(pe_ptr, slots, mask, R, BLOCK_R)
        scores = tl.dot(q_latent, tl.trans(kv), input_precision=PRECISION)
        scores = tl.dot(q_pe, tl.trans(pe), scores, input_precision=PRECISION) * scale_log2
        scores = tl.where(mask[None, :], scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        probs = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(probs, axis=1)
        context = tl.dot(probs.to(kv.dtype), kv, context * shrink[:, None], input_precision=PRECISION)
        top = new_top
    columns = tl.arange(0, BLOCK_C)
    parts = (row * H + heads) * tl.num_programs(2) + split
    mask = head_mask[:, None] & (columns < C)[None, :]
    tl.store(part_ptr + parts[:, None] * C + columns[None, :], context / total[:, None], mask=mask)
    tl.store(lse_ptr + parts, top + tl.log2(total), mask=head_mask)


@triton.jit
def _merge_kernel(
    part_ptr, lse_ptr, lengths_ptr, out_ptr, SPLIT, num_splits, H: tl.constexpr, C: tl.constexpr, BLOCK_C: tl.constexpr
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK_C)
    top, total = -1e30, 0.0
    context = tl.zeros([BLOCK_C], tl.float32)
    for split in range(0, tl.cdiv(tl.load(lengths_ptr + row), SPLIT)):
        index = (row * H + head) * num_splits + split
        lse = tl.load(lse_ptr + index)
        part = tl.load(part_ptr + index * C + columns, mask=columns < C, other=0.0)
        new_top = tl.maximum(top, lse)
        shrink, weight = tl.exp2(top - new_top), tl.exp2(lse - new_top)
        context = context * shrink + part * weight
        total = total * shrink + weight
        top = new_top
    context = context / tl.where(total == 0.0, 1.0, total)  # an empty row: zeros
    tl.store(out_ptr + (row * H + head) * C + columns, context, mask=columns < C)


def _tiles(dtype: torch.dtype, H: int) -> dict[str, int]:
    """Chosen so that nothing spills with latents of 512 + 64."""
    if dtype == torch.float32:
        return {"BLOCK_H": 16, "BLOCK_S": 16, "STAGES": 1, "num_warps": 4}
    heads = min(32, block(H, 16))  # 64 x 512 sums would need more registers than there are
    if has_large_tiles():
        return {"BLOCK_H": heads, "BLOCK_S": 64, "STAGES": 1, "num_warps": 8}
    return {"BLOCK_H": heads, "BLOCK_S": 32, "STAGES": 2, "num_warps": 8}


def split_size(H: int, C: int, R: int, itemsize: int, capacity: int) -> int:
    """Positions of a split, for `capacity` positions a row."""
    # The fp32 sums of a split are written and read once: 8 H C bytes, at most half of what its latents take.
    worthwhile = triton.cdiv(2 * 8 * H * C, itemsize * (C + R))
    return triton.cdiv(max(worthwhile, triton.cdiv(capacity, _MOST_SPLITS)), _LEAST_SPLIT) * _LEAST_SPLIT


def forward(
    q_latent_BHC: Tensor,
    q_pe_BHR: Tensor,
    kv_cache_NSC: Tensor,
    pe_cache_NSR: Tensor,
    block_table_BP: Tensor,
    lengths_B: Tensor,
    scale: float,
) -> Tensor:
    """Launch: context [B, H, C]."""
    q_latent_BHC, q_pe_BHR = q_latent_BHC.contiguous(), q_pe_BHR.contiguous()
    block_table_BP, lengths_B = block_table_BP.contiguous(), lengths_B.contiguous()
    if not (kv_cache_NSC.is_contiguous() and pe_cache_NSR.is_contiguous()):
        raise ValueError("kv_cache_NSC and pe_cache_NSR must be contiguous: a copy of the cache each step is too slow")
    (B, H, C), R, PAGE = q_latent_BHC.shape, q_pe_BHR.shape[2], kv_cache_NSC.shape[1]
    tiles = _tiles(q_latent_BHC.dtype, H)
    capacity = block_table_BP.shape[1] * PAGE
    split = split_size(H, C, R, q_latent_BHC.element_size(), capacity)
    num_splits = max(1, triton.cdiv(capacity, split))
    out_BHC = torch.empty(B, H, C, dtype=q_latent_BHC.dtype, device=q_latent_BHC.device)
    parts_BHZC = torch.empty(B, H, num_splits, C, dtype=torch.float32, device=q_latent_BHC.device)
    lse_BHZ = torch.empty(B, H, num_splits, dtype=torch.float32, device=q_latent_BHC.device)
    if B:
        BLOCK_C = block(C, 16)
        _split_kernel[(triton.cdiv(H, tiles["BLOCK_H"]), B, num_splits)](
            q_latent_BHC, q_pe_BHR, kv_cache_NSC, pe_cache_NSR, block_table_BP, lengths_B, parts_BHZC, lse_BHZ,
            scale * _LOG2_E, block_table_BP.stride(0), split, H=H, C=C, R=R, PAGE=PAGE,
            BLOCK_C=BLOCK_C, BLOCK_R=block(R, 16), PRECISION=dot_precision(), **tiles,
        )  # fmt: skip
        _merge_kernel[(B, H)](
            parts_BHZC, lse_BHZ, lengths_B, out_BHC, split, num_splits,
            H=H, C=C, BLOCK_C=BLOCK_C, num_warps=warps(BLOCK_C, per_thread=4, most=4),
        )  # fmt: skip
    return out_BHC


_op = torch.library.custom_op("r1lab_gpu::mla_decode", forward, mutates_args=())


@_op.register_fake
def _(q_latent, q_pe, kv_cache, pe_cache, block_table, lengths, scale):
    return q_latent.new_empty(q_latent.shape)


def mla_decode(
    q_latent_BHC: Tensor,
    q_pe_BHR: Tensor,
    kv_cache_NSC: Tensor,
    pe_cache_NSR: Tensor,
    block_table_BP: Tensor,
    lengths_B: Tensor,
    scale: float,
) -> Tensor:
    """As `ops.mla_decode`, for tensors of one dtype in `launch.DTYPES` and contiguous caches; no gradient.

    Raises ValueError when a cache is not contiguous.
    """
    return _op(q_latent_BHC, q_pe_BHR, kv_cache_NSC, pe_cache_NSR, block_table_BP, lengths_B, scale)
