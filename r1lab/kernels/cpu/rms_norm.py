"""torch.library op of cpu/rms_norm.cpp. Saves one number a row (1 / rms) for the backward."""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp, c_function


def _rows(x: Tensor) -> Tensor:
    """x as [N, D] whose rows are contiguous; a view where the strides allow it."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


@KernelOp
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, weight = _rows(x), weight.contiguous()
    y = torch.empty(x.shape, dtype=x.dtype)
    inverse_rms = torch.empty(rows.shape[0], dtype=x.dtype)
    c_function("r1lab_rms_norm", "pipdppiii")(
        rows.data_ptr(), rows.stride(0), weight.data_ptr(), eps, y.data_ptr(), inverse_rms.data_ptr(),
        *rows.shape, torch.get_num_threads(),
    )  # fmt: skip
    return y, inverse_rms


@rms_norm.register_fake
def _(x, weight, eps):
    return x.new_empty(x.shape), x.new_empty(x.numel() // x.shape[-1])


@KernelOp
def rms_norm_backward(grad_y: Tensor, x: Tensor, weight: Tensor, inverse_rms: Tensor) -> tuple[Tensor, Tensor]:
    rows, grad_y, weight = _rows(x), grad_y.contiguous(), weight.contiguous()
    grad_x = torch.empty(x.shape, dtype=x.dtype)
    grad_weight = torch.empty(weight.shape, dtype=x.dtype)
    c_function("r1lab_rms_norm_backward", "ppipppp" + "iii")(
        grad_y.data_ptr(), rows.data_ptr(), rows.stride(0), weight.data_ptr(), inverse_rms.data_ptr(),
        grad_x.data_ptr(), grad_weight.data_ptr(), *rows.shape, torch.get_num_threads(),
    )  # fmt: skip
    return grad_x, grad_weight


@rms_norm_backward.register_fake
def _(grad_y, x, weight, inverse_rms):
    return x.new_empty(x.shape), weight.new_empty(weight.shape)


def _setup_context(ctx, inputs, output):
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_y, _grad_inverse_rms):
    if grad_y is None:
        return None, None, None
    return *rms_norm_backward(grad_y, *ctx.saved_tensors), None


rms_norm.register_autograd(_backward, setup_context=_setup_context)
