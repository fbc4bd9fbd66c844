"""The Triton kernels: one file per op, the formula at its top. Importing this needs Triton; `ops` picks it for CUDA.

In every file the jitted kernels come first, then `_tiles` with the chosen configuration, plain launch functions
(`forward`, `backward`), and the torch.library op on top of them. All of them run without a GPU under
TRITON_INTERPRET=1, and `tests/bench/compile_gpu_kernels.py` compiles them ahead for a list of GPUs.
"""

from r1lab.kernels.gpu.mla_attention import mla_attention
from r1lab.kernels.gpu.mla_decode import mla_decode
from r1lab.kernels.gpu.moe_experts import moe_experts
from r1lab.kernels.gpu.moe_gate import moe_gate
from r1lab.kernels.gpu.quantize_tiles import quantize_tiles
from r1lab.kernels.gpu.rms_norm import rms_norm
from r1lab.kernels.gpu.rope import rope
from r1lab.kernels.gpu.sampling import random_uniform, sampling
from r1lab.kernels.gpu.scaled_gemm import scaled_gemm
from r1lab.kernels.gpu.token_logps import token_logps

__all__ = [
    "mla_attention", "mla_decode", "moe_experts", "moe_gate", "quantize_tiles", "random_uniform", "rms_norm", "rope",
    "sampling", "scaled_gemm", "token_logps",
]  # fmt: skip
