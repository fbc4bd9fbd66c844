"""torch.library op of cpu/moe_gate.cpp. Saves nothing beyond its input and the chosen indices."""

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp, c_function


@KernelOp
def moe_gate(
    logits: Tensor,
    bias: Tensor,
    n_group: int,
    topk_group: int,
    top_k: int,
    norm_topk_prob: bool,
    routed_scaling_factor: float,
) -> tuple[Tensor, Tensor]:
    """Returns topk_weights, topk_idx: torch.library.opcheck adds outputs up, which fails when integers come first."""
    logits, bias = logits.contiguous(), bias.contiguous()
    num_tokens, num_experts = logits.shape
    topk_idx = torch.empty(num_tokens, top_k, dtype=torch.int64)
    topk_weights = torch.empty(num_tokens, top_k, dtype=logits.dtype)
    c_function("r1lab_moe_gate", "pppp" + "iiiiii" + "di")(
        logits.data_ptr(), bias.data_ptr(), topk_idx.data_ptr(), topk_weights.data_ptr(), num_tokens, num_experts,
        n_group, topk_group, top_k, norm_topk_prob, routed_scaling_factor, torch.get_num_threads(),
    )  # fmt: skip
    return topk_weights, topk_idx


@moe_gate.register_fake
def _(logits, bias, n_group, topk_group, top_k, norm_topk_prob, routed_scaling_factor):
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape), logits.new_empty(shape, dtype=torch.int64)


@KernelOp
def moe_gate_weights(logits: Tensor, topk_idx: Tensor, norm_topk_prob: bool, routed_scaling_factor: float) -> Tensor:
    """What moe_gate gives the experts that it chooses, for those of topk_idx."""
    logits, topk_idx = logits.contiguous(), topk_idx.contiguous()
    topk_weights = torch.empty(topk_idx.shape, dtype=logits.dtype)
    c_function("r1lab_moe_gate_weights", "ppp" + "iiii" + "di")(
        logits.data_ptr(), topk_idx.data_ptr(), topk_weights.data_ptr(), *logits.shape, topk_idx.shape[1],
        norm_topk_prob, routed_scaling_factor, torch.get_num_threads(),
    )  # fmt: skip
    return topk_weights


@moe_gate_weights.register_fake
def _(logits, topk_idx, norm_topk_prob, routed_scaling_factor):
    return logits.new_empty(topk_idx.shape)


@KernelOp
def moe_gate_backward(
    grad_weights: Tensor, logits: Tensor, topk_idx: Tensor, norm_topk_prob: bool, routed_scaling_factor: float
) -> Tensor:
    grad_weights, logits, topk_idx = grad_weights.contiguous(), logits.contiguous(), topk_idx.contiguous()
    grad_logits = torch.empty(logits.shape, dtype=logits.dtype)
    c_function("r1lab_moe_gate_backward", "pppp" + "iiii" + "di")(
        grad_weights.data_ptr(), logits.data_ptr(), topk_idx.data_ptr(), grad_logits.data_ptr(), *logits.shape,
        topk_idx.shape[1], norm_topk_prob, routed_scaling_factor, torch.get_num_threads(),
    )  # fmt: skip
    return grad_logits


@moe_gate_backward.register_fake
def _(grad_weights, logits, topk_idx, norm_topk_prob, routed_scaling_factor):
    return logits.new_empty(logits.shape)


def _setup_context(ctx, inputs, output):
    logits, _, _, _, _, ctx.norm_topk_prob, ctx.routed_scaling_factor = inputs
    ctx.save_for_backward(logits, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_weights, _grad_idx):
    grad_logits = None
    if grad_weights is not None:
        grad_logits = moe_gate_backward(grad_weights, *ctx.saved_tensors, ctx.norm_topk_prob, ctx.routed_scaling_factor)
    return grad_logits, None, None, None, None, None, None


moe_gate.register_autograd(_backward, setup_context=_setup_context)


def _setup_weights_context(ctx, inputs, output):
    logits, topk_idx, ctx.norm_topk_prob, ctx.routed_scaling_factor = inputs
    ctx.save_for_backward(logits, topk_idx)
    ctx.set_materialize_grads(False)


def _weights_backward(ctx, grad_weights):
    return _backward(ctx, grad_weights, None)[0], None, None, None


moe_gate_weights.register_autograd(_weights_backward, setup_context=_setup_weights_context)
