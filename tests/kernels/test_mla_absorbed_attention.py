import pytest
import torch
from kernel_cases import assert_bitwise_equal, assert_close, poisoned

from r1lab.kernels import ops, reference
from r1lab.kernels.cpu.library import c_function

pytestmark = pytest.mark.usefixtures("cpu_kernels")

HEAD_SIZES = {
    "base": (4, 32, 16, 32, 32), "odd": (3, 7, 6, 9, 5), "one head": (1, 1, 2, 1, 1), "many": (7, 16, 8, 24, 12)
}  # fmt: skip
"""H, N, R, C, W."""
SEQUENCES = {
    "ragged": ([5, 1, 37, 64, 24, 25], None),
    "long": ([301], None),  # more than a chunk of positions
    "two groups": ([7, 30, 1, 55, 26, 24, 3], [-1, 0, 0, 0, -1, 4, 4]),
    "mixed": ([5, 40, 0, 31, 8], [-1, -1, 0, 1, 0]),
    "long prefix": ([270, 2, 50], [-1, 0, 0]),
}


def make_inputs(lengths, sizes, seed=0):
    """q, kv, k_pe, kv_b, cos, sin as the model has them, kv and k_pe slices of one tensor."""
    H, N, R, C, W = sizes
    T = sum(lengths)
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    latent, angles = normal(T, C + R), normal(T, R // 2) * 3
    return [normal(T, H, N + R), latent[:, :C], latent[:, C:], normal(H, N + W, C) / C**0.5, angles.cos(), angles.sin()]


def run(op, lengths, inputs, prefix=None, interleave=True, scale=0.2):
    """The output and the gradients of a fixed function of it."""
    leaves = [x.detach().requires_grad_() for x in inputs[:4]]
    bounds = torch.tensor([0, *lengths]).cumsum(0).int()
    prefix = None if prefix is None else torch.tensor(prefix, dtype=torch.int32)
    out = op(*leaves, *inputs[4:], interleave, bounds, max(lengths), scale, prefix)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("sizes", HEAD_SIZES.values(), ids=HEAD_SIZES)
@pytest.mark.parametrize("name", SEQUENCES)
def test_output_and_gradients_equal_the_reference(name, sizes, interleave):
    lengths, prefix = SEQUENCES[name]
    inputs = make_inputs(lengths, sizes)
    ours = run(ops.mla_absorbed_attention, lengths, inputs, prefix, interleave)
    for mine, theirs in zip(ours, run(reference.mla_absorbed_attention, lengths, inputs, prefix, interleave)):
        assert_close(mine, theirs, 2e-5)


def test_the_reference_equals_attention_over_expanded_heads():
    lengths, sizes = [9, 4], HEAD_SIZES["odd"]
    q, kv, k_pe, kv_b, cos, sin = make_inputs(lengths, sizes)
    N = sizes[1]
    expanded = torch.einsum("tc,hec->the", kv, kv_b)
    q_pe = reference.rope(q[..., N:], cos, sin, True)
    k_pe_turned = reference.rope(k_pe.unsqueeze(1), cos, sin, True).squeeze(1)
    bounds = torch.tensor([0, 9, 13], dtype=torch.int32)
    heads = (q[..., :N], q_pe, expanded[..., :N], k_pe_turned, expanded[..., N:])
    expected = reference.mla_attention(*heads, bounds, 9, 0.2)
    absorbed = reference.mla_absorbed_attention(q, kv, k_pe, kv_b, cos, sin, True, bounds, 9, 0.2)
    assert_close(absorbed, expected, 1e-5)


def test_a_sequence_does_not_depend_bitwise_on_its_neighbours_or_the_threads(each_thread_count):
    lengths, sizes = [40, 7, 90, 20], HEAD_SIZES["base"]
    inputs = make_inputs(lengths, sizes)
    results = each_thread_count(lambda: run(ops.mla_absorbed_attention, lengths, inputs))
    assert_bitwise_equal(results)
    alone = [*(x[47:137] for x in inputs[:3]), inputs[3], *(x[47:137] for x in inputs[4:])]
    assert torch.equal(run(ops.mla_absorbed_attention, [90], alone)[0], results[0][0][47:137])


def test_a_shared_prefix_gives_the_bits_that_copies_of_it_give():
    lengths, prefix = [21, 30, 11], [-1, 0, 0]
    inputs = make_inputs(lengths, HEAD_SIZES["base"])
    shared = run(ops.mla_absorbed_attention, lengths, inputs, prefix)[0]
    rows = [*range(51), *range(21), *range(51, 62)]
    copies = [x if i == 3 else x[rows] for i, x in enumerate(inputs)]
    apart = run(ops.mla_absorbed_attention, [51, 32], copies)[0]
    assert torch.equal(shared, torch.cat([apart[:51], apart[72:]]))


def test_nan_stays_with_the_queries_that_see_it():
    lengths = [10, 12]
    inputs = make_inputs(lengths, HEAD_SIZES["odd"])
    inputs[1] = inputs[1].clone()
    inputs[1][4] = float("nan")
    is_nan = run(ops.mla_absorbed_attention, lengths, inputs)[0].isnan().flatten(1).any(1)
    assert is_nan.tolist() == [False] * 4 + [True] * 6 + [False] * 12


def test_kernel_writes_every_element():
    T, H, C, R = 21, 3, 9, 6
    q_latent, q_pe, kv, k_pe = (torch.randn(*shape) for shape in ((T, H, C), (T, H, R), (T, C), (T, R)))
    cos = sin = torch.rand(T, R // 2)
    bounds, prefix = torch.tensor([0, 9, 21]).int(), torch.tensor([-1, 0]).int()
    out, lse = poisoned(T, H, C), poisoned(T, H)
    shared = (
        q_pe.data_ptr(), H * R, R, kv.data_ptr(), C, k_pe.data_ptr(), R, cos.data_ptr(), sin.data_ptr(), True,
        bounds.data_ptr(), prefix.data_ptr(), T, 2, H, C, R, 0.3,
    )  # fmt: skip
    signature = "piipipippippiiiiid"
    c_function("r1lab_mla_absorbed_attention", "p" + signature + "ppi")(
        q_latent.data_ptr(), *shared, out.data_ptr(), lse.data_ptr(), 2
    )
    grads = [poisoned(*x.shape) for x in (q_latent, q_pe, kv, k_pe)]
    c_function("r1lab_mla_absorbed_attention_backward", "pp" + signature + "ppppppi")(
        torch.randn(T, H, C).data_ptr(), q_latent.data_ptr(), *shared, out.data_ptr(), lse.data_ptr(),
        *(grad.data_ptr() for grad in grads), 2,
    )  # fmt: skip
    for output in (out, lse, *grads):
        assert torch.isfinite(output).all()


def test_wrong_shapes_are_named():
    lengths, sizes = [5, 4], HEAD_SIZES["odd"]
    bounds, inputs = torch.tensor([0, 5, 9]).int(), make_inputs(lengths, sizes)
    for i, wrong in enumerate((inputs[0][1:], inputs[1][:, 1:], inputs[2][1:], inputs[3][1:], inputs[4][1:])):
        changed = [*inputs[:i], wrong, *inputs[i + 1 :]]
        with pytest.raises(ValueError, match="expected"):
            ops.mla_absorbed_attention(*changed, True, bounds, 5, 0.2)


def test_opcheck():
    lengths, sizes = [5, 4], HEAD_SIZES["odd"]
    leaves = [x.detach().clone().requires_grad_(i < 4) for i, x in enumerate(make_inputs(lengths, sizes))]
    bounds, prefix = torch.tensor([0, 5, 9]).int(), torch.tensor([-1, 0]).int()
    torch.library.opcheck(torch.ops.r1lab.mla_absorbed_attention.default, (*leaves, True, bounds, prefix, 0.2))
