"""torch.library op of cpu/scaled_gemm.cpp, the emulated product of E4M3 matrices."""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp, c_function
from r1lab.kernels.reference import TILE


@KernelOp
def scaled_gemm(a_MK: Tensor, a_scale_MG: Tensor, b_NK: Tensor, b_scale: Tensor) -> Tensor:
    a_MK, a_scale_MG, b_NK, b_scale = (each.contiguous() for each in (a_MK, a_scale_MG, b_NK, b_scale))
    (M, K), N = a_MK.shape, b_NK.shape[0]
    out = torch.empty(M, N, dtype=torch.float32)
    c_function("r1lab_scaled_gemm", "pppp" + "i" + "p" + "iiii")(
        a_MK.data_ptr(), a_scale_MG.data_ptr(), b_NK.data_ptr(), b_scale.data_ptr(),
        1 if b_scale.shape[0] == N else TILE, out.data_ptr(), M, N, K, torch.get_num_threads(),
    )  # fmt: skip
    return out


@scaled_gemm.register_fake
def _(a_MK, a_scale_MG, b_NK, b_scale):
    return a_scale_MG.new_empty(a_MK.shape[0], b_NK.shape[0])
