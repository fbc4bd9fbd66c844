"""torch.library op of cpu/mla_attention.cpp. Saves the output and one number a query and head for the backward."""

import ctypes

import torch
from torch import Tensor

from r1lab.kernels.cpu.library import KernelOp, c_function


def _pointers(tensors: list[Tensor]):
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _arguments(q_nope, q_pe, k_nope, k_pe, v) -> tuple[list[Tensor], tuple]:
    """The inputs with contiguous rows, and how C reads them: pointers, strides."""
    inputs = [x if x.stride(-1) == 1 else x.contiguous() for x in (q_nope, q_pe, k_nope, k_pe, v)]
    strides = [stride for x in inputs for stride in (x.stride(0), x.stride(1) if x.dim() == 3 else 0)]
    return inputs, (_pointers(inputs), (ctypes.c_int64 * len(strides))(*strides))


@KernelOp
def mla_attention(
    q_nope: Tensor,
    q_pe: Tensor,
    k_nope: Tensor,
    k_pe: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    prefix: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor]:
    _inputs, pointers = _arguments(q_nope, q_pe, k_nope, k_pe, v)
    cu_seqlens, prefix = cu_seqlens.contiguous(), prefix.contiguous()
    out, lse = torch.empty(v.shape, dtype=v.dtype), torch.empty(v.shape[:2], dtype=v.dtype)
    c_function("r1lab_mla_attention", "pppp" + "iiiii" + "dppi")(
        *pointers, cu_seqlens.data_ptr(), prefix.data_ptr(), len(cu_seqlens) - 1, *q_nope.shape[1:], q_pe.shape[2],
        v.shape[2], scale, out.data_ptr(), lse.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out, lse


@mla_attention.register_fake
def _(q_nope, q_pe, k_nope, k_pe, v, cu_seqlens, prefix, scale):
    return v.new_empty(v.shape), v.new_empty(v.shape[:2])


@KernelOp
def mla_attention_backward(
    grad_out: Tensor,
    q_nope: Tensor,
    q_pe: Tensor,
    k_nope: Tensor,
    k_pe: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    prefix: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs, pointers = _arguments(q_nope, q_pe, k_nope, k_pe, v)
    grad_out, cu_seqlens, prefix = grad_out.contiguous(), cu_seqlens.contiguous(), prefix.contiguous()
    gradients = [torch.empty(x.shape, dtype=x.dtype) for x in inputs]
    c_function("r1lab_mla_attention_backward", "ppppp" + "iiiiii" + "dpppi")(
        grad_out.data_ptr(), *pointers, cu_seqlens.data_ptr(), prefix.data_ptr(), v.shape[0], len(cu_seqlens) - 1,
        *q_nope.shape[1:], q_pe.shape[2], v.shape[2], scale, out.data_ptr(), lse.data_ptr(), _pointers(gradients),
        torch.get_num_threads(),
    )  # fmt: skip
    return tuple(gradients)


@mla_attention_backward.register_fake
def _(grad_out, q_nope, q_pe, k_nope, k_pe, v, cu_seqlens, prefix, scale, out, lse):
    return tuple(x.new_empty(x.shape) for x in (q_nope, q_pe, k_nope, k_pe, v))


def _setup_context(ctx, inputs, output):
    *tensors, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.scale = scale
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_lse):
    if grad_out is None:
        return (None,) * 8
    *inputs, out, lse = ctx.saved_tensors
    return *mla_attention_backward(grad_out, *inputs, ctx.scale, out, lse), None, None, None


mla_attention.register_autograd(_backward, setup_context=_setup_context)
