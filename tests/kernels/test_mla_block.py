from dataclasses import fields, replace

import pytest
import torch
from kernel_cases import assert_bitwise_equal, assert_close

from r1lab.kernels import ops, reference
from r1lab.kernels.ops import MlaWeights

pytestmark = pytest.mark.usefixtures("cpu_kernels")
SIZES = {"base": (128, 64, 4, 32, 16, 32, 32), "no q_a": (40, None, 3, 8, 4, 12, 8), "odd": (37, 11, 3, 7, 6, 9, 5)}
"""D, Q, H, N, R, C, W."""
LENGTHS, PREFIX = [9, 30, 1, 17], [-1, 0, 0, -1]


def normal(*shape, seed):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) / shape[-1] ** 0.5).requires_grad_()


def make_case(sizes):
    """x, weights, and the other arguments."""
    D, Q, H, N, R, C, W = sizes
    T = sum(LENGTHS)
    weights = MlaWeights(
        normal(D, seed=1), None if Q is None else normal(Q, D, seed=2), None if Q is None else normal(Q, seed=3),
        normal(H * (N + R), Q or D, seed=4), normal(C + R, D, seed=5), normal(C, seed=6), normal(H, N + W, C, seed=7),
        normal(D, H * W, seed=8), (1e-6, 1e-5, 1e-4),
    )  # fmt: skip
    angles = torch.rand(T, R // 2) * 6
    bounds, prefix = torch.tensor([0, *LENGTHS]).cumsum(0).int(), torch.tensor(PREFIX).int()
    return normal(T, D, seed=0), weights, (angles.cos(), angles.sin(), True, bounds, 39, 0.3, prefix)


def leaves_of(x, weights):
    parts = [getattr(weights, field.name) for field in fields(weights)]
    return [x, *(part for part in parts if isinstance(part, torch.Tensor))]


def run(block, x, weights, rest):
    y = block(x, weights, *rest)
    return y.detach(), *torch.autograd.grad(
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), leaves_of(x, weights)
    )


def part_by_part(x, weights, cos, sin, interleave, bounds, longest, scale, prefix):
    """What `reference.mla_block` writes, with the kernels of its parts."""
    eps, q_eps, kv_eps = weights.eps
    normed, rank = ops.rms_norm(x, weights.input_norm, eps), len(weights.kv_norm)
    low = normed if weights.q_a is None else ops.rms_norm(ops.linear(normed, weights.q_a), weights.q_norm, q_eps)
    q, latent = ops.linear(low, weights.q_b).unflatten(-1, (len(weights.kv_b), -1)), ops.linear(normed, weights.kv_a)
    kv = ops.rms_norm(latent[:, :rank], weights.kv_norm, kv_eps)
    rest = (weights.kv_b, cos, sin, interleave, bounds, longest, scale, prefix)
    out = ops.mla_absorbed_attention(q, kv, latent[:, rank:], *rest)
    return x + ops.linear(out.flatten(1), weights.o)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_output_and_gradients_equal_the_reference(sizes):
    case = make_case(sizes)
    for mine, theirs in zip(run(ops.mla_block, *case), run(reference.mla_block, *case), strict=True):
        assert_close(mine, theirs, 3e-5)


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_output_has_the_bits_of_its_parts(sizes):
    case = make_case(sizes)
    ours, parts = run(ops.mla_block, *case), run(part_by_part, *case)
    assert torch.equal(ours[0], parts[0])
    for mine, other in zip(ours, parts, strict=True):
        assert_close(mine, other, 1e-6)


def test_same_bits_for_any_number_of_threads(each_thread_count):
    case = make_case(SIZES["base"])
    assert_bitwise_equal(each_thread_count(lambda: run(ops.mla_block, *case)))


def test_less_is_kept_than_by_its_parts():
    x, weights, rest = make_case(SIZES["base"])

    def kept(block):
        sizes, known = {}, {leaf.data_ptr() for leaf in leaves_of(x, weights)}

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in known:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            block(x, weights, *rest)
        return sum(sizes.values())

    assert kept(ops.mla_block) < 0.5 * kept(part_by_part)


@pytest.mark.parametrize("name", ["input_norm", "q_a", "kv_b", "o"])
def test_frozen_weights_get_no_gradient(name):
    x, weights, rest = make_case(SIZES["odd"])
    weights = replace(weights, **{name: getattr(weights, name).detach()})
    ops.mla_block(x, weights, *rest).square().sum().backward()
    assert getattr(weights, name).grad is None and x.grad is not None and weights.q_b.grad is not None


def test_bad_bounds_and_angles_are_named():
    x, weights, (cos, sin, interleave, bounds, *others) = make_case(SIZES["odd"])
    with pytest.raises(ValueError, match="expected 0, rising to"):
        ops.mla_block(x, weights, cos, sin, interleave, bounds - 1, *others)
    for name in ("input_norm", "q_a", "q_b", "kv_a", "o"):
        wrong = replace(weights, **{name: getattr(weights, name)[..., 1:]})
        with pytest.raises(ValueError, match="do not fit"):
            ops.mla_block(x, wrong, cos, sin, interleave, bounds, *others)
    with pytest.raises(ValueError, match="cos_TP has shape"):
        ops.mla_block(x, weights, cos[1:], sin, interleave, bounds, *others)


@pytest.mark.parametrize("sizes", [SIZES["odd"], SIZES["no q_a"]])
def test_opcheck(sizes):
    x, weights, (cos, sin, interleave, bounds, _, scale, prefix) = make_case(sizes)
    parts = [getattr(weights, field.name) for field in fields(weights)][:-1]
    settings = (cos, sin, bounds, prefix, interleave, scale, *weights.eps)
    torch.library.opcheck(torch.ops.r1lab.mla_block.default, (x, *parts, *settings))
