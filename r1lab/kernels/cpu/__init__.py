"""Compiled CPU kernels, fp32: <op>.cpp is the kernel, <op>.py makes a torch.library op of it (fake, autograd).

D, E, F, K, T, V as in `r1lab.kernels.ops`. Results are bit-identical from run to run and for any number of threads.
"""

from r1lab.kernels.cpu.linear import linear
from r1lab.kernels.cpu.mla_absorbed_attention import mla_absorbed_attention
from r1lab.kernels.cpu.mla_attention import mla_attention
from r1lab.kernels.cpu.mla_block import mla_block
from r1lab.kernels.cpu.moe_experts import moe_experts
from r1lab.kernels.cpu.moe_gate import moe_gate, moe_gate_weights
from r1lab.kernels.cpu.quantize_tiles import dequantize_tiles, quantize_tiles
from r1lab.kernels.cpu.rms_norm import rms_norm
from r1lab.kernels.cpu.scaled_gemm import scaled_gemm
from r1lab.kernels.cpu.swiglu import swiglu
from r1lab.kernels.cpu.token_logps import token_logps

__all__ = [
    "dequantize_tiles", "linear", "mla_absorbed_attention", "mla_attention", "mla_block", "moe_experts", "moe_gate",
    "moe_gate_weights", "quantize_tiles", "rms_norm", "scaled_gemm", "swiglu", "token_logps",
]  # fmt: skip
