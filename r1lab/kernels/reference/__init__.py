"""The plain PyTorch truth of every op: one file per op, against the paper's formula, differentiable by autograd."""

from r1lab.kernels.reference.linear import linear
from r1lab.kernels.reference.mla_absorbed_attention import mla_absorbed_attention
from r1lab.kernels.reference.mla_attention import mla_attention
from r1lab.kernels.reference.mla_block import MlaWeights, mla_block
from r1lab.kernels.reference.mla_decode import mla_decode
from r1lab.kernels.reference.moe_experts import moe_experts
from r1lab.kernels.reference.moe_gate import moe_gate, moe_gate_weights
from r1lab.kernels.reference.quantize_tiles import TILE, dequantize_tiles, quantize_tiles
from r1lab.kernels.reference.rms_norm import rms_norm
from r1lab.kernels.reference.rope import rope
from r1lab.kernels.reference.sampling import random_uniform, sampling
from r1lab.kernels.reference.scaled_gemm import scaled_gemm
from r1lab.kernels.reference.swiglu import swiglu
from r1lab.kernels.reference.token_logps import token_logps

__all__ = [
    "MlaWeights", "TILE", "dequantize_tiles", "linear", "mla_absorbed_attention", "mla_attention", "mla_block",
    "mla_decode", "moe_experts", "moe_gate", "moe_gate_weights", "quantize_tiles", "random_uniform", "rms_norm",
    "rope", "sampling", "scaled_gemm", "swiglu", "token_logps",
]  # fmt: skip
