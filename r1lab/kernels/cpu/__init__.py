"""Compiled CPU kernels, fp32: <op>.cpp is the kernel, <op>.py makes a torch.library op of it (fake, autograd).

D, E, F, K, T, V as in `r1lab.kernels.ops`. Results are bit-identical from run to run and for any number of threads.
"""

from r1lab.kernels.cpu import (
    mla_attention,
    moe_experts,
    moe_gate,
    quantize_tiles,
    rms_norm,
    scaled_gemm,
    token_logps,
)

__all__ = ["mla_attention", "moe_experts", "moe_gate", "quantize_tiles", "rms_norm", "scaled_gemm", "token_logps"]
