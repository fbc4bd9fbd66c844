"""The block-scaled product of E4M3 matrices (V3 technical report, arXiv:2412.19437, section 3.3.2, figure 7).

    y_mn = sum over groups g of 128 along k of  a_scale_mg b_scale_ng  sum over k in g of a_mk b_nk

The inner sum is one product of tensor cores with a fresh accumulator, 128 deep, since theirs keeps about 14 bits on
Hopper; scales and the outer sum are fp32 outside of them (promotion, N_C = 128).

M, N rows of the operands, K = inner dimension, G = ceil(K / 128).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1lab.kernels.gpu.launch import block, unit_stride


@triton.jit
def _gemm_kernel(
    a_ptr, a_scale_ptr, b_ptr, b_scale_ptr, out_ptr, M, N, K, G, a_m, b_n,
    B_ROWS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """b_scale has a row for each B_ROWS rows of b; BLOCK_K is 128, or less where K is."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    inner = tl.arange(0, BLOCK_K)
    out = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for group in tl.range(0, G, num_stages=STAGES):
        k = group * BLOCK_K + inner
        a = tl.load(a_ptr + m[:, None] * a_m + k[None, :], mask=(m < M)[:, None] & (k < K)[None, :], other=0.0)
        b = tl.load(b_ptr + n[:, None] * b_n + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)
        a_scale = tl.load(a_scale_ptr + m * G + group, mask=m < M, other=0.0)
        b_scale = tl.load(b_scale_ptr + n // B_ROWS * G + group, mask=n < N, other=0.0)
        part = tl.dot(a, tl.trans(b), out_dtype=tl.float32)
        out += part * a_scale[:, None] * b_scale[None, :]
    tl.store(out_ptr + m[:, None] * N + n[None, :], out, mask=(m < M)[:, None] & (n < N)[None, :])


def _tiles(M: int, K: int) -> dict[str, int]:
    """Chosen so that nothing spills: two accumulators live at once."""
    BLOCK_M = 128 if M >= 128 else 64
    return {"BLOCK_M": BLOCK_M, "BLOCK_N": 128, "BLOCK_K": min(128, block(K, 32)), "STAGES": 3, "num_warps": 8}


def forward(a_MK: Tensor, a_scale_MG: Tensor, b_NK: Tensor, b_scale: Tensor) -> Tensor:
    """Launch: fp32 [M, N]."""
    (M, K), N = a_MK.shape, b_NK.shape[0]
    out = torch.empty(M, N, dtype=torch.float32, device=a_MK.device)
    if K == 0:
        return out.zero_()
    if M and N:
        a_MK, b_NK, tiles = unit_stride(a_MK), unit_stride(b_NK), _tiles(M, K)
        _gemm_kernel[(triton.cdiv(M, tiles["BLOCK_M"]), triton.cdiv(N, tiles["BLOCK_N"]))](
            a_MK, a_scale_MG.contiguous(), b_NK, b_scale.contiguous(), out, M, N, K, a_scale_MG.shape[1],
            a_MK.stride(0), b_NK.stride(0), B_ROWS=1 if b_scale.shape[0] == N else 128, **tiles,
        )  # fmt: skip
    return out


_op = torch.library.custom_op("r1lab_gpu::scaled_gemm", forward, mutates_args=())


@_op.register_fake
def _(a_MK, a_scale_MG, b_NK, b_scale):
    return a_scale_MG.new_empty(a_MK.shape[0], b_NK.shape[0])


def scaled_gemm(a_MK: Tensor, a_scale_MG: Tensor, b_NK: Tensor, b_scale: Tensor) -> Tensor:
    """As `ops.scaled_gemm`, on tensor cores that multiply E4M3 numbers (compute capability 8.9 and later)."""
    return _op(a_MK, a_scale_MG, b_NK, b_scale)
