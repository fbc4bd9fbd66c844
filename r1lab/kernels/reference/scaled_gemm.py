"""The block-scaled product of E4M3 matrices in plain PyTorch (V3 technical report, arXiv:2412.19437, section 3.3.2).

M, N rows of the two operands, K = inner dimension, G = ceil(K / 128) groups along it.
"""

import torch

from r1lab.kernels.reference.quantize_tiles import TILE


def scaled_gemm(
    a_MK: torch.Tensor, a_scale_MG: torch.Tensor, b_NK: torch.Tensor, b_scale: torch.Tensor
) -> torch.Tensor:
    """a @ b.T for a = a_q * a_scale and b = b_q * b_scale, fp32 [M, N].

    a: E4M3 [M, K]; a_scale: fp32 [M, G], 1x128 tiles; b: E4M3 [N, K]; b_scale: fp32 [N, G], 1x128 tiles, or
    [ceil(N / 128), G], 128x128 blocks. 128 products are summed in fp32, then scaled and added to the result in fp32,
    the promotion interval N_C = 128 of figure 7(b). Every product of two E4M3 numbers is exact in fp32.
    """
    (M, K), N = a_MK.shape, b_NK.shape[0]
    b_scale_NG = b_scale if b_scale.shape[0] == N else b_scale.repeat_interleave(TILE, 0)[:N]
    out = torch.zeros(M, N, dtype=torch.float32, device=a_MK.device)
    with torch.autocast(a_MK.device.type, enabled=False):
        for group, first in enumerate(range(0, K, TILE)):
            inner = slice(first, first + TILE)
            part = a_MK[:, inner].float() @ b_NK[:, inner].float().t()
            out += part.mul_(a_scale_MG[:, group, None]).mul_(b_scale_NG[:, group])
    return out
