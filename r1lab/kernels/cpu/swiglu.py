"""torch.library op of a dense SwiGLU: cpu/moe_experts.cpp with one expert that every row chooses.

Saves its inputs; gate and up are multiplied for again in the backward, as the experts' are.
"""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp
from r1lab.kernels.cpu.moe_experts import moe_experts, moe_experts_backward


def _as_expert(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> tuple[Tensor, ...]:
    """x, topk_idx, topk_weights, gate_up, down of the routed experts' kernel."""
    rows = x.reshape(-1, x.shape[-1])
    everyone = torch.zeros(len(rows), 1, dtype=torch.int64), torch.ones(len(rows), 1)
    return rows, *everyone, torch.cat([gate, up]).unsqueeze(0), down.unsqueeze(0)


@KernelOp
def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    return moe_experts.function(*_as_expert(x, gate, up, down)).view(x.shape)


@swiglu.register_fake
def _(x, gate, up, down):
    return x.new_empty(x.shape)


@KernelOp
def swiglu_backward(
    grad_y: Tensor, x: Tensor, gate: Tensor, up: Tensor, down: Tensor, needs_x: bool, needs_weights: bool
) -> list[Tensor]:
    """Gradients of x, gate, up, down; those that are not needed come back empty."""
    grad_x, _, grad_gate_up, grad_down = moe_experts_backward.function(
        grad_y.reshape(-1, grad_y.shape[-1]), *_as_expert(x, gate, up, down), needs_x, needs_weights, needs_weights
    )
    if not needs_weights:
        return [grad_x.view(x.shape) if needs_x else grad_x, *(x.new_empty(0) for _ in range(3))]
    grad_gate, grad_up = (part.clone() for part in grad_gate_up.squeeze(0).chunk(2))
    return [grad_x.view(x.shape) if needs_x else grad_x, grad_gate, grad_up, grad_down.squeeze(0)]


@swiglu_backward.register_fake
def _(grad_y, x, gate, up, down, needs_x, needs_weights):
    weights = [weight.new_empty(weight.shape if needs_weights else (0,)) for weight in (gate, up, down)]
    return [x.new_empty(x.shape if needs_x else (0,)), *weights]


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y):
    if grad_y is None:
        return None, None, None, None
    needs_x, *needs_weights = ctx.needs_input_grad
    gradients = swiglu_backward(grad_y, *ctx.saved_tensors, needs_x, any(needs_weights))
    return tuple(grad if needed else None for grad, needed in zip(gradients, (needs_x, *needs_weights)))


swiglu.register_autograd(_backward, setup_context=_setup_context)
