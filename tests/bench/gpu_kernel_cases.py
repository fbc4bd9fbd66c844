"""What both scripts for the GPU kernels run: every op at DeepSeek-V3's sizes in bf16, at a small policy's in fp32.

A case says how to make the arguments on any device ("meta" too), how to launch both directions, and what each kernel
costs at least: floating-point operations, and bytes that must cross the memory bus with every tensor moved once.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

BF16, FP32, E4M3 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
H100_BYTES = 3.35e12
"""Bytes a second of an H100 SXM's memory (its data sheet)."""
H100_FLOPS = {E4M3: 1979e12, BF16: 989e12, FP32: 67e12}
"""Operations a second: dense E4M3 and bf16 on the tensor cores, fp32 on the ordinary ones."""


@dataclass(frozen=True, slots=True)
class Cost:
    """The least a kernel has to do."""

    flops: float
    bytes: float
    dtype: torch.dtype
    """What the operations run in: E4M3 or bf16 (tensor cores) or fp32."""

    @property
    def floor_us(self) -> float:
        """Microseconds on an H100: the slower of memory and arithmetic."""
        return max(self.bytes / H100_BYTES, self.flops / H100_FLOPS[self.dtype]) * 1e6


@dataclass(frozen=True, slots=True)
class Case:
    """One op at one size."""

    op: str
    size: str
    dtype: torch.dtype
    inputs: Callable[[str], tuple]
    """device -> arguments of the public function; floating-point ones are those to be differentiated."""
    costs: dict[str, dict[str, Cost]]
    """direction -> kernel -> cost; "torch.mm" is a product left to cuBLAS."""
    launch_backward: Callable[[tuple, tuple], None] | None = None
    """(arguments, forward's outputs) -> launches the backward; None: the op has none."""
    forward_extra: tuple = ()
    """What the launch function takes beyond the public arguments."""
    least_capability: int = 80
    """The oldest GPUs that have what the kernel needs."""

    @property
    def module(self):
        """The file of the op's kernels."""
        return importlib.import_module(f"r1lab.kernels.gpu.{self.op}")

    def launch_forward(self, args: tuple):
        """Launch without autograd; returns what the backward needs."""
        launch = {"rope": "rotate", "sampling": "draw"}.get(self.op, "forward")
        return getattr(self.module, launch)(*args, *self.forward_extra)


def normal(device: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """Normal numbers, scaled by the last dimension so that products stay near 1."""
    return torch.empty(shape, dtype=dtype, device=device).normal_().mul_(shape[-1] ** -0.5)


def rms_norm_case(dtype, T, D) -> Case:
    size = dtype.itemsize
    return Case(
        "rms_norm", f"T={T} D={D}", dtype,
        lambda device: (normal(device, dtype, T, D), normal(device, dtype, D), 1e-6),
        {"forward": {"forward": Cost(4 * T * D, size * (2 * T * D + D) + 4 * T, FP32)},
         "backward": {"backward": Cost(9 * T * D, size * (3 * T * D + D) + 4 * T, FP32)}},
        lambda args, out: importlib.import_module("r1lab.kernels.gpu.rms_norm").backward(out[0], *args[:2], out[1]),
    )  # fmt: skip


def rope_case(dtype, T, H, R, interleave) -> Case:
    cost = {"rope": Cost(3 * T * H * R, 2 * dtype.itemsize * T * H * R + 4 * T * R, FP32)}
    module = importlib.import_module("r1lab.kernels.gpu.rope")
    return Case(
        "rope", f"T={T} H={H} R={R} {'interleaved' if interleave else 'halves'}", dtype,
        lambda device: (normal(device, dtype, T, H, R), normal(device, FP32, T, R // 2),
                        normal(device, FP32, T, R // 2), interleave),
        {"forward": cost, "backward": cost},
        lambda args, out: module.rotate(out, *args[1:], True), (False,),
    )  # fmt: skip


def mla_attention_case(dtype, lengths, H, N, R, W) -> Case:
    T, size = sum(lengths), dtype.itemsize
    pairs = H * sum(length * (length + 1) // 2 for length in lengths)
    q, k, v, lse = T * H * (N + R), T * (H * N + R), T * H * W, 4 * T * H
    grad_k_pe = 4 * T * H * R
    module = importlib.import_module("r1lab.kernels.gpu.mla_attention")

    def inputs(device):
        shapes = ((T, H, N), (T, H, R), (T, H, N), (T, R), (T, H, W))
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
        return *(normal(device, dtype, *shape) for shape in shapes), ends, max(lengths), (N + R) ** -0.5

    def backward(args, out):
        *tensors, longest, scale = args
        module.backward(out[0], *tensors, *out, longest, scale)

    return Case(
        "mla_attention", f"{len(lengths)}x{max(lengths)} H={H} {N}+{R}/{W}", dtype, inputs,
        {"forward": {"forward": Cost(2 * pairs * (N + R + W), size * (q + k + 2 * v) + lse, dtype)},
         "backward": {
             "delta": Cost(2 * v, size * 2 * v + lse, FP32),
             "grad_kv": Cost(pairs * (4 * (N + R) + 4 * W), size * (q + 2 * k + 3 * v) + 2 * lse + grad_k_pe, dtype),
             "grad_q": Cost(pairs * (4 * (N + R) + 2 * W), size * (2 * q + k + 2 * v) + 2 * lse, dtype)}},
        backward,
    )  # fmt: skip


def mla_decode_case(dtype, B, length, H, C, R, page=64) -> Case:
    pages, size = -(-length // page), dtype.itemsize

    def inputs(device):
        caches = normal(device, dtype, B * pages, page, C), normal(device, dtype, B * pages, page, R)
        table = torch.arange(B * pages, dtype=torch.int32, device=device).view(B, pages)
        lengths = torch.full((B,), length, dtype=torch.int32, device=device)
        queries = normal(device, dtype, B, H, C), normal(device, dtype, B, H, R)
        return *queries, *caches, table, lengths, (C + R) ** -0.5

    module = importlib.import_module("r1lab.kernels.gpu.mla_decode")
    parts = 4 * B * H * C * -(-length // module.split_size(H, C, R, size, pages * page))
    cost = Cost(2 * B * H * length * (2 * C + R), size * B * (length + H) * (C + R) + parts, dtype)
    merge = Cost(2 * parts // 4, parts + size * B * H * C, FP32)
    costs = {"forward": {"split": cost, "merge": merge}}
    return Case("mla_decode", f"B={B} S={length} H={H} {C}+{R}", dtype, inputs, costs)


def moe_gate_case(T, E, groups, kept_groups, K) -> Case:
    module = importlib.import_module("r1lab.kernels.gpu.moe_gate")
    settings = (groups, kept_groups, K, True, 2.5)
    return Case(
        "moe_gate", f"T={T} E={E} groups={groups} K={K}", FP32,
        lambda device: (normal(device, FP32, T, E), torch.zeros(E, device=device), *settings),
        {"forward": {"gate": Cost((6 + 2 * K) * T * E, 4 * T * E + 4 * E + 12 * T * K, FP32)},
         "backward": {"gate_backward": Cost(12 * T * K, 8 * T * E + 12 * T * K, FP32)}},
        lambda args, out: module.backward(out[0], args[0], out[1], *settings[3:]),
    )  # fmt: skip


def moe_experts_case(dtype, T, D, E, F, K) -> Case:
    size, P = dtype.itemsize, T * K
    module = importlib.import_module("r1lab.kernels.gpu.moe_experts")
    up_weights, down_weights = 2 * E * F * D, E * D * F

    def inputs(device):
        x, gate_up = normal(device, dtype, T, D), normal(device, dtype, E, 2 * F, D)
        down, weights = normal(device, dtype, E, D, F), torch.full((T, K), 1 / K, device=device)
        return x, torch.rand(T, E, device=device).topk(K).indices, weights, gate_up, down

    costs = {
        "forward": {
            "gate_up": Cost(4 * P * D * F, size * (T * D + up_weights + 3 * P * F), dtype),
            "rows": Cost(2 * P * D * F, size * (P * F + down_weights + P * D), dtype),
            "sum over k": Cost(P * D, size * (P * D + T * D), FP32),
        },
        "backward": {
            "grad_hidden": Cost(2 * P * D * F, size * (T * D + down_weights + 5 * P * F), dtype),
            "rows": Cost(4 * P * D * F, size * (2 * P * F + up_weights + P * D), dtype),
            "sum over k": Cost(P * D, size * (P * D + T * D), FP32),
            "weight_grad": Cost(6 * P * D * F, size * (2 * T * D + 3 * P * F + up_weights + down_weights), dtype),
        },
    }
    return Case(
        "moe_experts", f"T={T} D={D} E={E} F={F} K={K}", dtype, inputs, costs,
        lambda args, out: module.backward(out[0], *args, out[1], True, True, True), (True,),
    )  # fmt: skip


def token_logps_case(dtype, T, D, V) -> Case:
    size = dtype.itemsize
    module = importlib.import_module("r1lab.kernels.gpu.token_logps")
    slices = 12 * T * -(-V // 2048)
    return Case(
        "token_logps", f"T={T} D={D} V={V}", dtype,
        lambda device: (normal(device, dtype, T, D), normal(device, dtype, V, D),
                        torch.zeros(T, dtype=torch.int64, device=device), 1.0),
        {"forward": {"slices": Cost(2 * T * D * V, size * (T * D + V * D) + 12 * T + slices, dtype),
                     "merge": Cost(slices, slices + 16 * T, FP32)},
         "backward": {"grad_logits": Cost(2 * T * D * V, size * (T * D + V * D + T * V), dtype),
                      "torch.mm": Cost(4 * T * D * V, size * 2 * (T * D + V * D + T * V), dtype)}},
        lambda args, out: module.backward(out[0], *args[:3], out[2], 1.0, True, True),
    )  # fmt: skip


def sampling_case(B, V, top_k, top_p) -> Case:
    uniform = dict(dtype=torch.float64)
    return Case(
        "sampling", f"B={B} V={V} top_k={top_k} top_p={top_p}", FP32,
        lambda device: (normal(device, FP32, B, V), torch.rand(B, device=device, **uniform), 1.0, top_k, top_p),
        {"forward": {"sampling": Cost(8 * B * V, 4 * B * V + 20 * B, FP32)}}, None, (None,),
    )  # fmt: skip


def quantize_tiles_case(M, K, tile_rows) -> Case:
    scales = -(-M // tile_rows) * -(-K // 128)
    return Case(
        "quantize_tiles", f"M={M} K={K} tiles {tile_rows}x128", BF16,
        lambda device: (normal(device, BF16, M, K), tile_rows, tile_rows == 1),
        {"forward": {"quantize": Cost(8 * M * K, 3 * M * K + 4 * scales, FP32)}},
    )  # fmt: skip


def scaled_gemm_case(M, N, K, b_rows) -> Case:
    groups = -(-K // 128)
    rows = N if b_rows == 1 else -(-N // 128)

    def inputs(device):
        a, b = torch.empty(M, K, dtype=E4M3, device=device), torch.empty(N, K, dtype=E4M3, device=device)
        return a, torch.ones(M, groups, device=device), b, torch.ones(rows, groups, device=device)

    cost = Cost(2 * M * N * K, (M + N) * K + 4 * (M + rows) * groups + 4 * M * N, E4M3)
    return Case(
        "scaled_gemm", f"M={M} N={N} K={K} b in {b_rows}x128", E4M3, inputs, {"forward": {"gemm": cost}},
        least_capability=89,
    )  # fmt: skip


def all_cases() -> list[Case]:
    """DeepSeek-V3's layer on one GPU, then a policy of 38 M parameters."""
    return [
        rms_norm_case(BF16, 8192, 7168),
        rope_case(BF16, 8192, 128, 64, True),
        rope_case(BF16, 8192, 128, 64, False),
        mla_attention_case(BF16, [2048] * 4, 128, 128, 64, 128),
        mla_decode_case(BF16, 64, 4096, 128, 512, 64),
        moe_gate_case(8192, 256, 8, 4, 8),
        moe_experts_case(BF16, 8192, 7168, 256, 2048, 8),
        token_logps_case(BF16, 8192, 7168, 129280),
        sampling_case(64, 129280, 0, 1.0),
        sampling_case(64, 129280, 50, 0.9),
        quantize_tiles_case(8192, 7168, 1),
        quantize_tiles_case(4096, 7168, 128),
        scaled_gemm_case(8192, 4096, 7168, 128),
        scaled_gemm_case(2048, 7168, 8192, 1),
        rms_norm_case(FP32, 16384, 384),
        rope_case(FP32, 16384, 6, 32, True),
        mla_attention_case(FP32, [512] * 32, 6, 64, 32, 64),
        mla_decode_case(FP32, 128, 512, 6, 128, 32),
        moe_gate_case(16384, 16, 1, 1, 2),
        moe_experts_case(FP32, 16384, 384, 16, 256, 2),
        token_logps_case(FP32, 16384, 384, 8192),
        scaled_gemm_case(16384, 48, 96, 128),
    ]
