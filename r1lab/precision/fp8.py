"""FP8 mixed precision for a policy's linear layers and experts (V3 technical report, arXiv:2412.19437, section 3.3).

All three products of a linear layer y = x W^T take E4M3 operands and sum in fp32:

    fprop   y  = x W^T      x in 1x128 tiles along its features, W in 128x128 blocks
    dgrad   dx = dy W       dy in 1x128 tiles along its features, the same W
    wgrad   dW = dy^T x     dy and x in 128x1 tiles, along the tokens

x, and in a feed-forward the inputs of SwiGLU, are kept for the backward in E4M3 and tiled anew along the tokens there
(sections 3.3.3 and 3.5.2). Scales of activations and of
gradients are powers of two, so that the second rounding is exact but for underflow; V3 does so for the input of the
attention's output projection and for what is dispatched to experts (section 3.3.3). Scales of weights are not, as in
released checkpoints. Weights, their gradients and the optimiser's state stay what they are; embedding, head, gate,
norms and the attention core never see FP8.

T = tokens, K = input features, N = output features, D, E, F as in `r1lab.kernels.ops`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from r1lab.kernels import ops
from r1lab.kernels.reference import TILE
from r1lab.kernels.reference.moe_experts import run_experts
from r1lab.model import PolicyForCausalLM
from r1lab.model.linear import PolicyLinear
from r1lab.model.moe import RoutedExperts, SwiGLU


def fp8_linear(x: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """x @ weight.T + bias with all three products in E4M3; the bias is added in x's dtype, and its gradient summed so.

    x: [..., K]; weight: [N, K]; bias: [N]. Returns [..., N] in x's dtype. Differentiable once.
    Raises ValueError when the shapes do not fit.
    """
    if weight_NK.dim() != 2 or x.shape[-1:] != weight_NK.shape[1:]:
        raise ValueError(f"x has shape {tuple(x.shape)}, weight_NK {tuple(weight_NK.shape)}: expected [..., K], [N, K]")
    y = _Linear.apply(x.reshape(-1, x.shape[-1]), weight_NK).view(*x.shape[:-1], len(weight_NK))
    return y if bias_N is None else y + bias_N


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        x = _quantize(x_TK)
        ctx.save_for_backward(*x, weight_NK)
        ctx.dtype = x_TK.dtype
        return ops.scaled_gemm(*x, *ops.quantize_tiles(weight_NK, TILE)).to(x_TK.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TN: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x_TK, x_scale, weight_NK = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _input_grad(grad_TN, weight_NK).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            x_by_token = _quantize(ops.dequantize_tiles(x_TK, x_scale, 1).t())
            grad_weight = _weight_grad(grad_TN, x_by_token).to(weight_NK.dtype)
        return grad_x, grad_weight


def fp8_swiglu(x: torch.Tensor, gate_FD: torch.Tensor, up_FD: torch.Tensor, down_DF: torch.Tensor) -> torch.Tensor:
    """down (silu(gate x) * up x) with its nine products in E4M3; SwiGLU itself is fp32.

    The inputs of SwiGLU are kept in E4M3 for the backward, which computes its output from them anew (section 3.3.3).
    x: [..., D]; gate, up: [F, D]; down: [D, F]. Returns [..., D] in x's dtype. Differentiable once.
    Raises ValueError when the shapes do not fit.
    """
    D, inner = x.shape[-1], len(gate_FD)
    shapes = [tuple(weight.shape) for weight in (gate_FD, up_FD, down_DF)]
    if shapes != [(inner, D), (inner, D), (D, inner)]:
        raise ValueError(f"x has shape {tuple(x.shape)}, gate, up and down {shapes}: expected [F, D] twice and [D, F]")
    return _SwiGLU.apply(x.reshape(-1, D), gate_FD, up_FD, down_DF).view(x.shape)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_TD: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        gate_FD, up_FD, down_DF = (ops.quantize_tiles(weight, TILE) for weight in weights)
        x = _quantize(x_TD)
        gate_TF, up_TF = ops.scaled_gemm(*x, *gate_FD), ops.scaled_gemm(*x, *up_FD)
        ctx.save_for_backward(*x, *_quantize(gate_TF), *_quantize(up_TF), *weights)
        ctx.dtype = x_TD.dtype
        return ops.scaled_gemm(*_quantize(F.silu(gate_TF) * up_TF), *down_DF).to(x_TD.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_TD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        *kept, gate_FD, up_FD, down_DF = ctx.saved_tensors
        x_TD, gate_TF, up_TF = (ops.dequantize_tiles(q, scale, 1) for q, scale in zip(kept[::2], kept[1::2]))
        needs_x, needs_gate, needs_up, needs_down = ctx.needs_input_grad
        sigmoid_TF = gate_TF.sigmoid()
        silu_TF = gate_TF * sigmoid_TF
        hidden_grad_TF = _input_grad(grad_TD, down_DF)
        gate_grad_TF = hidden_grad_TF * up_TF * sigmoid_TF * (1 + gate_TF * (1 - sigmoid_TF))
        up_grad_TF = hidden_grad_TF * silu_TF
        grads: list[torch.Tensor | None] = [None] * 4
        if needs_x:
            grads[0] = (_input_grad(gate_grad_TF, gate_FD) + _input_grad(up_grad_TF, up_FD)).to(ctx.dtype)
        if needs_gate or needs_up:
            x_by_token = _quantize(x_TD.t())
            grads[1] = _weight_grad(gate_grad_TF, x_by_token).to(gate_FD.dtype) if needs_gate else None
            grads[2] = _weight_grad(up_grad_TF, x_by_token).to(up_FD.dtype) if needs_up else None
        if needs_down:
            grads[3] = _weight_grad(grad_TD, _quantize((silu_TF * up_TF).t())).to(down_DF.dtype)
        return tuple(grads)


def _quantize(x_TK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return ops.quantize_tiles(x_TK, 1, power_of_two=True)


def _input_grad(grad_TN: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
    """dgrad: fp32 [T, K]. The weight is rounded once more rather than kept in two forms."""
    weight, scale = ops.quantize_tiles(weight_NK, TILE)
    # Tensor cores want both operands with the inner dimension last.
    return ops.scaled_gemm(*_quantize(grad_TN), weight.t().contiguous(), scale.t().contiguous())


def _weight_grad(grad_TN: torch.Tensor, x_by_token: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """wgrad: fp32 [N, K], from the quantised x^T [K, T]."""
    return ops.scaled_gemm(*_quantize(grad_TN.t()), *x_by_token)


def fp8_experts(
    x_TD: torch.Tensor,
    topk_idx_TK: torch.Tensor,
    topk_weights_TK: torch.Tensor,
    gate_up_E2FD: torch.Tensor,
    down_EDF: torch.Tensor,
) -> torch.Tensor:
    """`ops.moe_experts` with the three products of every expert in E4M3; SwiGLU and the weighted sum stay high.

    Arguments and result as there. Gate and up are quantised apart, as checkpoints store them, and 128x1 tiles hold
    tokens of one expert only. The experts run one after the other, and their loads are read by the host.
    """
    experts = [(*gate_up.chunk(2), down) for gate_up, down in zip(gate_up_E2FD.unbind(0), down_EDF.unbind(0))]
    return run_experts(x_TD, topk_idx_TK, topk_weights_TK, experts, fp8_swiglu)


class FP8Linear(nn.Linear):
    """An `nn.Linear` whose products run in E4M3; the parameters are the same ones, in their own dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., K] -> [..., N]."""
        return fp8_linear(x, self.weight, self.bias)


class FP8SwiGLU(SwiGLU):
    """A dense feed-forward, or the shared experts, with its products in E4M3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., D] -> [..., D]."""
        return fp8_swiglu(x, self.gate_proj.weight, self.up_proj.weight, self.down_proj.weight)


class FP8RoutedExperts(RoutedExperts):
    """The routed experts with their products in E4M3."""

    def weighted_sum(
        self, x_TD: torch.Tensor, topk_idx_TK: torch.Tensor, topk_weights_TK: torch.Tensor
    ) -> torch.Tensor:
        """As in `RoutedExperts`."""
        return fp8_experts(x_TD, topk_idx_TK, topk_weights_TK, self.gate_up_proj, self.down_proj)


_CLASSES = {PolicyLinear: FP8Linear, SwiGLU: FP8SwiGLU, RoutedExperts: FP8RoutedExperts}


def enable_fp8(policy: nn.Module) -> list[str]:
    """From now on the policy's linear layers and experts compute in FP8. Returns the names of the modules changed.

    Only the decoder's layers change, so embedding and head stay; so do the gate and the norms, which are no linear
    layers, the attention core, and `eh_proj` of the multi-token-prediction module, which V3's checkpoints keep high
    too. Parameters, their names and checkpoints do not change. Safe to call twice.

    Raises:
        ValueError: not a `PolicyForCausalLM`.
    """
    return _replace_classes(policy, _CLASSES)


def disable_fp8(policy: nn.Module) -> list[str]:
    """Takes `enable_fp8` back; returns the names of the modules that it changed.

    Raises:
        ValueError: not a `PolicyForCausalLM`.
    """
    return _replace_classes(policy, {low: high for high, low in _CLASSES.items()})


@contextmanager
def fp8_computation(policy: nn.Module) -> Iterator[nn.Module]:
    """Inside, the policy computes in FP8; on leaving it is as before.

    Raises:
        ValueError: not a `PolicyForCausalLM`.
    """
    changed = enable_fp8(policy)
    try:
        yield policy
    finally:
        if changed:
            disable_fp8(policy)


def _replace_classes(policy: nn.Module, classes: dict[type, type]) -> list[str]:
    if not isinstance(policy, PolicyForCausalLM):
        raise ValueError(
            f"FP8 needs a PolicyForCausalLM (DeepSeek-V3 models), not {type(policy).__name__}; leave FP8 off for other "
            "models"
        )
    changed = []
    for name, module in policy.model.layers.named_modules(prefix="model.layers"):
        if type(module) in classes and not name.endswith("eh_proj"):
            # The class alone changes: optimisers, wrappers and checkpoints keep the very same parameters.
            module.__class__ = classes[type(module)]
            changed.append(name)
    return changed


def computes_in_fp8(module: nn.Module) -> bool:
    """Whether a linear layer's or the routed experts' products run in E4M3, with weights stored so or not."""
    return isinstance(module, (FP8Linear, FP8RoutedExperts)) or getattr(module, "is_stored_fp8", False)


@torch.no_grad()
def computed_weight(module: nn.Module, name: str = "weight") -> torch.Tensor:
    """A module's weight as its products see it: rounded to E4M3 blocks when it computes in FP8, else as it is.

    What samples for a policy that trains in FP8 reads these.
    """
    weight = getattr(module, name).detach()
    if name == "bias" or not isinstance(module, (FP8Linear, FP8RoutedExperts)):
        return weight
    parts = (
        weight.unflatten(1, (2, -1)).flatten(0, 1) if name == "gate_up_proj" else weight.view(-1, *weight.shape[-2:])
    )
    rounded = [ops.dequantize_tiles(*ops.quantize_tiles(part, TILE), TILE) for part in parts]
    return torch.stack(rounded).view_as(weight).to(weight.dtype)
