"""torch.library op of cpu/token_logps.cpp. Saves one number a token (log-sum-exp); the logits are never kept."""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp, c_function, pointer


@KernelOp
def token_logps(hidden: Tensor, head: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    hidden, head, targets = hidden.contiguous(), head.contiguous(), targets.contiguous()
    logps, entropy, lse = (torch.empty(targets.shape, dtype=hidden.dtype) for _ in range(3))
    bad = c_function("r1lab_token_logps", "pppppp" + "iii" + "di", returns_int=True)(
        hidden.data_ptr(), head.data_ptr(), targets.data_ptr(), logps.data_ptr(), entropy.data_ptr(), lse.data_ptr(),
        *hidden.shape, head.shape[0], temperature, torch.get_num_threads(),
    )  # fmt: skip
    if bad >= 0:
        raise ValueError(f"targets holds {targets[bad].item()} at {bad}; the vocabulary has {head.shape[0]}, from 0")
    return logps, entropy, lse


@token_logps.register_fake
def _(hidden, head, targets, temperature):
    return tuple(hidden.new_empty(targets.shape) for _ in range(3))


@KernelOp
def token_logps_backward(
    grad_logps: Tensor,
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    lse: Tensor,
    temperature: float,
    needs_hidden: bool,
    needs_head: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of hidden and head; one that is not needed comes back empty."""
    grad_logps, hidden = grad_logps.contiguous(), hidden.contiguous()
    head, targets = head.contiguous(), targets.contiguous()
    grad_hidden = hidden.new_empty(hidden.shape if needs_hidden else (0,))
    grad_head = head.new_empty(head.shape if needs_head else (0,))
    c_function("r1lab_token_logps_backward", "ppppppp" + "iii" + "di")(
        grad_logps.data_ptr(), hidden.data_ptr(), head.data_ptr(), targets.data_ptr(), lse.data_ptr(),
        pointer(grad_hidden if needs_hidden else None), pointer(grad_head if needs_head else None),
        *hidden.shape, head.shape[0], temperature, torch.get_num_threads(),
    )  # fmt: skip
    return grad_hidden, grad_head


@token_logps_backward.register_fake
def _(grad_logps, hidden, head, targets, lse, temperature, needs_hidden, needs_head):
    return hidden.new_empty(hidden.shape if needs_hidden else (0,)), head.new_empty(head.shape if needs_head else (0,))


def _setup_context(ctx, inputs, output):
    hidden, head, targets, ctx.temperature = inputs
    ctx.save_for_backward(hidden, head, targets, output[2])
    ctx.mark_non_differentiable(output[1], output[2])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_logps, _grad_entropy, _grad_lse):
    if grad_logps is None:
        return None, None, None, None
    needs_hidden, needs_head, _, _ = ctx.needs_input_grad
    grad_hidden, grad_head = token_logps_backward(
        grad_logps, *ctx.saved_tensors, ctx.temperature, needs_hidden, needs_head
    )
    return grad_hidden if needs_hidden else None, grad_head if needs_head else None, None, None


token_logps.register_autograd(_backward, setup_context=_setup_context)
