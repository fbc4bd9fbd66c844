"""torch.library op of cpu/linear.cpp. Saves its inputs."""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp, c_function, pointer


def _shape(x: Tensor, weight: Tensor) -> tuple[Tensor, tuple[int, int, int, int]]:
    """x as C reads it, [T, K] or [T, H, K] with contiguous last dimension, and (T, H, N, K)."""
    rows = x if weight.dim() == 3 else x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    return rows, (rows.shape[0], weight.shape[0] if weight.dim() == 3 else 1, *weight.shape[-2:])


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `reference.linear` returns."""
    (rows, sizes), weight = _shape(x, weight), weight.contiguous()
    y = torch.empty(*x.shape[:-1], weight.shape[-2], dtype=x.dtype)
    bias = None if bias is None else bias.contiguous()
    c_function("r1lab_linear", "piippp" + "iiiii")(
        rows.data_ptr(), rows.stride(0), rows.stride(-2), weight.data_ptr(), pointer(bias), y.data_ptr(), *sizes,
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def multiply_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, needs_x: bool = True, needs_weight: bool = True
) -> list[Tensor]:
    """Gradients of x and weight; one that is not needed comes back empty."""
    (rows, sizes), weight, grad_y = _shape(x, weight), weight.contiguous(), grad_y.contiguous()
    grad_x = x.new_empty(x.shape if needs_x else (0,))
    grad_weight = weight.new_empty(weight.shape if needs_weight else (0,))
    c_function("r1lab_linear_backward", "ppiippp" + "iiiii")(
        grad_y.data_ptr(), rows.data_ptr(), rows.stride(0), rows.stride(-2), weight.data_ptr(),
        pointer(grad_x if needs_x else None), pointer(grad_weight if needs_weight else None), *sizes,
        torch.get_num_threads(),
    )  # fmt: skip
    return [grad_x, grad_weight]


@KernelOp
def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return multiply(x, weight, bias)


@linear.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[-2])


@KernelOp
def linear_backward(grad_y: Tensor, x: Tensor, weight: Tensor, needs_x: bool, needs_weight: bool) -> list[Tensor]:
    return multiply_backward(grad_y, x, weight, needs_x, needs_weight)


@linear_backward.register_fake
def _(grad_y, x, weight, needs_x, needs_weight):
    return [x.new_empty(x.shape if needs_x else (0,)), weight.new_empty(weight.shape if needs_weight else (0,))]


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y):
    if grad_y is None:
        return None, None, None
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad
    grad_x, grad_weight = linear_backward(grad_y, *ctx.saved_tensors, needs_x, needs_weight)
    grad_bias = grad_y.flatten(0, -2).sum(0) if needs_bias else None
    return grad_x if needs_x else None, grad_weight if needs_weight else None, grad_bias


linear.register_autograd(_backward, setup_context=_setup_context)
