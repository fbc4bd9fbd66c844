"""torch.library op of cpu/moe_experts.cpp.

The matrix products are our own 6x16 register tiles with gather, SwiGLU and scatter fused around them, not torch.mm per
expert (`python tests/bench/bench_kernels.py` prints both). Nothing is kept for the backward but the inputs: gate and up
(2F numbers a pair, which were most of a training pass's memory) are multiplied for again.
"""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp, c_function, pointer


@KernelOp
def moe_experts(x: Tensor, topk_idx: Tensor, topk_weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    x, topk_idx, topk_weights = x.contiguous(), topk_idx.contiguous(), topk_weights.contiguous()
    gate_up, down = gate_up.contiguous(), down.contiguous()
    (num_tokens, hidden_size), top_k = x.shape, topk_idx.shape[1]
    num_experts, _, intermediate_size = down.shape
    y = torch.empty(x.shape, dtype=x.dtype)
    bad = c_function("r1lab_moe_experts", "pppppp" + "iiiiii", returns_int=True)(
        x.data_ptr(), topk_idx.data_ptr(), topk_weights.data_ptr(), gate_up.data_ptr(), down.data_ptr(), y.data_ptr(),
        num_tokens, hidden_size, num_experts, intermediate_size, top_k, torch.get_num_threads(),
    )  # fmt: skip
    if bad >= 0:
        value = topk_idx.view(-1)[bad].item()
        raise ValueError(f"topk_idx holds {value} at token {bad // top_k}; there are {num_experts} experts, from 0")
    return y


@moe_experts.register_fake
def _(x, topk_idx, topk_weights, gate_up, down):
    return x.new_empty(x.shape)


@KernelOp
def moe_experts_backward(
    grad_y: Tensor,
    x: Tensor,
    topk_idx: Tensor,
    topk_weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    needs_x: bool,
    needs_gate_up: bool,
    needs_down: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, topk_weights, gate_up, down; one that is not needed comes back empty."""
    grad_y, x, topk_idx = grad_y.contiguous(), x.contiguous(), topk_idx.contiguous()
    topk_weights, gate_up, down = topk_weights.contiguous(), gate_up.contiguous(), down.contiguous()
    grad_x, grad_gate_up, grad_down = _empty_grads(x, gate_up, down, needs_x, needs_gate_up, needs_down)
    grad_weights = torch.empty(topk_weights.shape, dtype=x.dtype)
    num_experts, hidden_size, intermediate_size = down.shape
    c_function("r1lab_moe_experts_backward", "p" * 10 + "iiiiii")(
        grad_y.data_ptr(), x.data_ptr(), topk_idx.data_ptr(), topk_weights.data_ptr(), gate_up.data_ptr(),
        down.data_ptr(), pointer(grad_x if needs_x else None), grad_weights.data_ptr(),
        pointer(grad_gate_up if needs_gate_up else None), pointer(grad_down if needs_down else None), x.shape[0],
        hidden_size, num_experts, intermediate_size, topk_idx.shape[1], torch.get_num_threads(),
    )  # fmt: skip
    return grad_x, grad_weights, grad_gate_up, grad_down


def _empty_grads(x, gate_up, down, needs_x, needs_gate_up, needs_down):
    needs = ((x, needs_x), (gate_up, needs_gate_up), (down, needs_down))
    return [tensor.new_empty(tensor.shape if needed else (0,)) for tensor, needed in needs]


@moe_experts_backward.register_fake
def _(grad_y, x, topk_idx, topk_weights, gate_up, down, needs_x, needs_gate_up, needs_down):
    grad_x, grad_gate_up, grad_down = _empty_grads(x, gate_up, down, needs_x, needs_gate_up, needs_down)
    return grad_x, topk_weights.new_empty(topk_weights.shape), grad_gate_up, grad_down


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y):
    if grad_y is None:
        return None, None, None, None, None
    needs_x, _, needs_weights, needs_gate_up, needs_down = ctx.needs_input_grad
    grad_x, grad_weights, grad_gate_up, grad_down = moe_experts_backward(
        grad_y, *ctx.saved_tensors, needs_x, needs_gate_up, needs_down
    )
    return (
        grad_x if needs_x else None,
        None,
        grad_weights if needs_weights else None,
        grad_gate_up if needs_gate_up else None,
        grad_down if needs_down else None,
    )


moe_experts.register_autograd(_backward, setup_context=_setup_context)
