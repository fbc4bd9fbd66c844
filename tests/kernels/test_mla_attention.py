import pytest
import torch

from r1lab.kernels import ops, reference

HEAD_SIZES = {"embedded base": (4, 32, 16, 32), "odd": (3, 7, 6, 13), "one head": (1, 1, 2, 1), "wide": (2, 40, 24, 50)}
LENGTHS = {"ragged": [5, 1, 37, 64, 24, 25], "one": [1], "two blocks": [48, 2], "long": [301]}


def make_inputs(lengths, sizes, seed=0):
    """q_nope, q_pe, k_nope, k_pe, v as the model has them, slices of wider tensors, and cu_seqlens."""
    H, N, R, W = sizes
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(sum(lengths), *shape, generator=generator)

    q, kv, k_pe = normal(H, N + R), normal(H, N + W), normal(R + 3)
    bounds = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0).int()
    return [q[..., :N], q[..., N:], kv[..., :N], k_pe[:, :R], kv[..., N:]], bounds


def run(op, inputs, bounds, scale=0.3):
    """The output and the gradients of a fixed function of it."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = op(*leaves, bounds, int(bounds.diff().max()), scale)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return out, *torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("sizes", HEAD_SIZES.values(), ids=HEAD_SIZES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_output_and_gradients_equal_the_reference(lengths, sizes):
    inputs, bounds = make_inputs(lengths, sizes)
    for ours, theirs in zip(run(ops.mla_attention, inputs, bounds), run(reference.mla_attention, inputs, bounds)):
        assert torch.allclose(ours, theirs, atol=2e-5, rtol=1e-4)


def test_the_reference_equals_scaled_dot_product_attention():
    inputs, bounds = make_inputs([6, 9], (2, 8, 4, 5))
    q_nope, q_pe, k_nope, k_pe, v = (x[:6] for x in inputs)
    q, k = torch.cat([q_nope, q_pe], -1), torch.cat([k_nope, k_pe[:, None].expand_as(q_pe)], -1)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), k.transpose(0, 1), v.transpose(0, 1), is_causal=True, scale=0.3
    )
    assert torch.allclose(reference.mla_attention(*inputs, bounds, 9, 0.3)[:6], expected.transpose(0, 1), atol=1e-6)


@pytest.mark.usefixtures("cpu_kernels")
def test_a_sequence_does_not_depend_bitwise_on_its_neighbours_or_the_threads(each_thread_count):
    inputs, bounds = make_inputs([40, 30, 7], HEAD_SIZES["embedded base"])
    together = each_thread_count(lambda: run(ops.mla_attention, inputs, bounds)[0])
    assert all(torch.equal(together[0], other) for other in together[1:])
    alone = ops.mla_attention(*(x[40:70] for x in inputs), torch.tensor([0, 30], dtype=torch.int32), 30, 0.3)
    assert torch.equal(together[0][40:70], alone)


@pytest.mark.usefixtures("cpu_kernels")
def test_large_scores_neither_overflow_nor_lose_the_softmax():
    inputs, bounds = make_inputs([50], (2, 8, 4, 5))
    big = [x * 40 for x in inputs]
    ours, theirs = run(ops.mla_attention, big, bounds), run(reference.mla_attention, big, bounds)
    assert all(x.isfinite().all() for x in ours)
    assert torch.allclose(ours[0], theirs[0], atol=1e-3, rtol=1e-4)


@pytest.mark.usefixtures("cpu_kernels")
def test_nan_stays_with_the_queries_that_see_it():
    inputs, bounds = make_inputs([60, 40], HEAD_SIZES["embedded base"])
    inputs[2] = inputs[2].clone()
    inputs[2][30] = float("nan")
    out = ops.mla_attention(*inputs, bounds, 60, 0.3)
    is_bad_T = out.isnan().any(-1).any(-1)
    assert is_bad_T.tolist() == [30 <= t < 60 for t in range(100)]


@pytest.mark.usefixtures("cpu_kernels")
def test_it_fills_every_element_of_its_outputs(monkeypatch):
    inputs, bounds = make_inputs([5, 30, 2], HEAD_SIZES["odd"])
    expected = run(ops.mla_attention, inputs, bounds)
    monkeypatch.setattr("torch.empty", lambda *shape, **options: torch.full(*shape, float("nan"), **options))
    for ours, theirs in zip(run(ops.mla_attention, inputs, bounds), expected):
        assert torch.equal(ours, theirs)


@pytest.mark.usefixtures("cpu_kernels")
def test_no_sequences_and_empty_sequences():
    inputs, bounds = make_inputs([3], (2, 4, 2, 5))
    assert ops.mla_attention(*(x[:0] for x in inputs), bounds[:1], 0, 0.3).shape == (0, 2, 5)
    with_empty = torch.tensor([0, 0, 3, 3], dtype=torch.int32)
    expected = ops.mla_attention(*inputs, bounds, 3, 0.3)
    assert torch.equal(ops.mla_attention(*inputs, with_empty, 3, 0.3), expected)
    assert torch.allclose(reference.mla_attention(*inputs, with_empty, 3, 0.3), expected, atol=1e-6)


@pytest.mark.usefixtures("cpu_kernels")
def test_custom_op_contract():
    inputs, bounds = make_inputs([4, 9], (2, 4, 2, 5))
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    torch.library.opcheck(torch.ops.r1lab.mla_attention, (*leaves, bounds, 0.3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({4: torch.zeros(12, 2, 5)}, r"v_THW has shape \(12, 2, 5\): expected \(13, 2, 5\)"),
        ({3: torch.zeros(13, 3)}, r"k_pe_TR has shape \(13, 3\): expected \(13, 2\)"),
        ({5: torch.tensor([0, 13])}, "cu_seqlens_B1 is torch.int64"),
        ({5: torch.tensor([0, 9, 4, 13], dtype=torch.int32)}, "rising to T=13"),
        ({5: torch.tensor([0, 12], dtype=torch.int32)}, "rising to T=13"),
    ],
)
def test_bad_shapes_are_named(change, message):
    inputs, bounds = make_inputs([4, 9], (2, 4, 2, 5))
    arguments = [change.get(i, argument) for i, argument in enumerate([*inputs, bounds])]
    with pytest.raises(ValueError, match=message):
        ops.mla_attention(*arguments, 9, 0.3)
