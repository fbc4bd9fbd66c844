"""Modules whose weights stay in E4M3 with their blocks' scales: what an FP8 checkpoint holds, for inference.

E, F, D as in `r1lab.kernels.ops`.
"""

import torch
import torch.nn.functional as F
from torch import nn

from r1lab.kernels import ops
from r1lab.kernels.reference import TILE
from r1lab.kernels.reference.moe_experts import run_experts
from r1lab.model.moe import RoutedExperts

Pair = tuple[torch.Tensor, torch.Tensor]
"""(E4M3 [N, K], fp32 [ceil(N / 128), ceil(K / 128)])."""


class StoredLinear(nn.Linear):
    """A linear layer over a stored weight; `weight` gives it dequantised, in fp32."""

    is_stored_fp8 = True

    @property
    def weight(self) -> torch.Tensor:
        """[N, K], computed at each access: for the absorbed attention path and the rollout engine."""
        return ops.dequantize_tiles(self.weight_e4m3, self.weight_scale_inv, TILE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N].

        Raises:
            RuntimeError: x needs a gradient.
        """
        y = _multiply(x.reshape(-1, x.shape[-1]), (self.weight_e4m3, self.weight_scale_inv))
        y = y.view(*x.shape[:-1], y.shape[-1])
        return y if self.bias is None else y + self.bias


class StoredExperts(RoutedExperts):
    """The routed experts over stored weights; `gate_up_proj` and `down_proj` give them dequantised, in fp32."""

    is_stored_fp8 = True

    @property
    def gate_up_proj(self) -> torch.Tensor:
        """[E, 2F, D], computed at each access."""
        return torch.stack([torch.cat([_dequantize(gate), _dequantize(up)]) for gate, up, _ in self._experts()])

    @property
    def down_proj(self) -> torch.Tensor:
        """[E, D, F], computed at each access."""
        return torch.stack([_dequantize(down) for _, _, down in self._experts()])

    def weighted_sum(
        self, x_TD: torch.Tensor, topk_idx_TK: torch.Tensor, topk_weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """As in `RoutedExperts`.

        Raises:
            RuntimeError: x needs a gradient.
        """
        return run_experts(x_TD, topk_idx_TK, topk_weights_TK, self._experts(), _swiglu)

    def _experts(self) -> list[tuple[Pair, Pair, Pair]]:
        parts = [zip(getattr(self, part), getattr(self, f"{part}_scale_inv"), strict=True) for part in _PARTS]
        return list(zip(*parts, strict=True))


_PARTS = ("gate", "up", "down")


def store_linear(module: nn.Module, weight_NK: torch.Tensor, scale: torch.Tensor) -> None:
    """Turns a linear layer into a `StoredLinear` of this weight."""
    del module.weight
    module.__class__ = StoredLinear
    module.register_buffer("weight_e4m3", weight_NK)
    module.register_buffer("weight_scale_inv", scale)


def store_experts(module: nn.Module, parts: dict[str, list[Pair]]) -> None:
    """Turns routed experts into `StoredExperts` of "gate", "up" and "down", a weight an expert each."""
    del module.gate_up_proj, module.down_proj
    module.__class__ = StoredExperts
    for part in _PARTS:
        module.register_buffer(part, torch.stack([weight for weight, _ in parts[part]]))
        module.register_buffer(f"{part}_scale_inv", torch.stack([scale for _, scale in parts[part]]))


def _dequantize(pair: Pair) -> torch.Tensor:
    return ops.dequantize_tiles(*pair, TILE)


def _swiglu(x_TD: torch.Tensor, gate: Pair, up: Pair, down: Pair) -> torch.Tensor:
    return _multiply(F.silu(_multiply(x_TD, gate)) * _multiply(x_TD, up), down)


def _multiply(x_TK: torch.Tensor, weight: Pair) -> torch.Tensor:
    if torch.is_grad_enabled() and x_TK.requires_grad:
        raise RuntimeError(
            "weights stored in FP8 cannot be trained; load the checkpoint without keep, then enable_fp8 it"
        )
    return ops.scaled_gemm(*ops.quantize_tiles(x_TK, 1, power_of_two=True), *weight).to(x_TK.dtype)
