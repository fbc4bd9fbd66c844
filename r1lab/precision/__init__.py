"""FP8 mixed precision: products in E4M3 with fine-grained scales, and checkpoints that keep them."""

from r1lab.precision.checkpoint import is_fp8_config, load_fp8_pretrained, save_fp8_pretrained
from r1lab.precision.fp8 import (
    computed_weight,
    computes_in_fp8,
    disable_fp8,
    enable_fp8,
    fp8_computation,
    fp8_experts,
    fp8_linear,
    fp8_swiglu,
)

__all__ = [
    "computed_weight", "computes_in_fp8", "disable_fp8", "enable_fp8", "fp8_computation", "fp8_experts", "fp8_linear",
    "fp8_swiglu", "is_fp8_config", "load_fp8_pretrained", "save_fp8_pretrained",
]  # fmt: skip
