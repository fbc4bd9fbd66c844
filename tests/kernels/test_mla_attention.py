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


def run(op, inputs, bounds, scale=0.3, prefix=None):
    """The output and the gradients of a fixed function of it."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = op(*leaves, bounds, int(bounds.diff().max()), scale, prefix)
    weights = torch.linspace(-1, 1, out.numel()).view_as(out)
    return out, *torch.autograd.grad((out * weights).sum(), leaves)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("sizes", HEAD_SIZES.values(), ids=HEAD_SIZES)
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_output_and_gradients_equal_the_reference(lengths, sizes):
    inputs, bounds = make_inputs(lengths, sizes)
    for ours, theirs in zip(run(ops.mla_attention, inputs, bounds), run(reference.mla_attention, inputs, bounds)):
        assert torch.allclose(ours, theirs, atol=2e-5, rtol=1e-4)


# lengths, and the sequence that each has as its prefix
FAMILIES = {
    "two groups": ([7, 30, 1, 55, 26, 24, 3], [-1, 0, 0, 0, -1, 4, 4]),
    "mixed": ([5, 40, 0, 31, 8], [-1, -1, 0, 1, 0]),
    "empty prefix": ([0, 9, 4], [-1, 0, 0]),
    "long prefix": ([70, 2, 50], [-1, 0, 0]),
}


def unshared(inputs, bounds, prefix):
    """The same sequences, each with a copy of its prefix, and where its own tokens are."""
    bounds, rows, own, lengths = bounds.tolist(), [], [], [0]
    for b, p in enumerate(prefix.tolist()):
        before = list(range(bounds[p], bounds[p + 1])) if p >= 0 else []
        own += [len(rows) + len(before) + i for i in range(bounds[b + 1] - bounds[b])]
        rows += [*before, *range(bounds[b], bounds[b + 1])]
        lengths.append(len(before) + bounds[b + 1] - bounds[b])
    return [x[rows] for x in inputs], torch.tensor(lengths).cumsum(0).int(), own


def family_inputs(name, sizes):
    lengths, prefix = FAMILIES[name]
    return *make_inputs(lengths, sizes), torch.tensor(prefix, dtype=torch.int32)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("sizes", HEAD_SIZES.values(), ids=HEAD_SIZES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_shared_prefix_gives_the_reference_s_output_and_gradients(name, sizes):
    inputs, bounds, prefix = family_inputs(name, sizes)
    ours = run(ops.mla_attention, inputs, bounds, prefix=prefix)
    theirs = run(reference.mla_attention, inputs, bounds, prefix=prefix)
    for mine, reference_now in zip(ours, theirs):
        assert torch.allclose(mine, reference_now, atol=5e-5, rtol=1e-4)


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_shared_prefix_gives_what_copies_of_it_give(name):
    inputs, bounds, prefix = family_inputs(name, HEAD_SIZES["embedded base"])
    copies, copy_bounds, own = unshared(inputs, bounds, prefix)
    expected = ops.mla_attention(*copies, copy_bounds, 0, 0.3)[own]
    assert torch.equal(ops.mla_attention(*inputs, bounds, 0, 0.3, prefix), expected)
    reference_now = reference.mla_attention(*copies, copy_bounds, 0, 0.3)[own]
    assert torch.allclose(reference.mla_attention(*inputs, bounds, 0, 0.3, prefix), reference_now, atol=2e-6)


def test_the_way_round_for_kernels_without_prefixes_gives_the_reference_s_output_and_gradients():
    inputs, bounds, prefix = family_inputs("mixed", (2, 8, 4, 5))

    def with_copies(*args):
        return ops._attention_with_copies(reference.mla_attention, args[:5], *args[5:])

    theirs = run(reference.mla_attention, inputs, bounds, prefix=prefix)
    for mine, reference_now in zip(run(with_copies, inputs, bounds, prefix=prefix), theirs):
        assert torch.allclose(mine, reference_now, atol=2e-5, rtol=1e-4)


@pytest.mark.usefixtures("cpu_kernels")
def test_shared_gradients_do_not_depend_bitwise_on_the_threads(each_thread_count):
    inputs, bounds, prefix = family_inputs("two groups", HEAD_SIZES["embedded base"])
    results = each_thread_count(lambda: run(ops.mla_attention, inputs, bounds, prefix=prefix))
    for other in results[1:]:
        assert all(torch.equal(first, second) for first, second in zip(results[0], other))


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ([-1, 1], r"prefix_B\[1\]=1: expected -1, or an earlier sequence"),
        ([-1, -2], r"prefix_B\[1\]=-2"),
        ([-1, 0, 1], r"prefix_B\[2\]=1: expected -1, or an earlier sequence that has no prefix itself"),
        ([-1, 0, 0, 0], r"prefix_B is torch.int32 \(4,\): expected int32 \[B\], B="),
    ],
)
def test_bad_prefixes_are_named(prefix, message):
    inputs, bounds = make_inputs([4, 9, 2][: max(2, min(len(prefix), 3))], (2, 4, 2, 5))
    with pytest.raises(ValueError, match=message):
        ops.mla_attention(*inputs, bounds, 9, 0.3, torch.tensor(prefix, dtype=torch.int32))


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
@pytest.mark.parametrize("part", range(5), ids=["q_nope", "q_pe", "k_nope", "k_pe", "v"])
def test_nan_of_one_sequence_leaves_no_trace_in_the_scratch_of_the_next(part):
    inputs, bounds = make_inputs([61, 40, 7], HEAD_SIZES["odd"])
    expected = run(ops.mla_attention, inputs, bounds)
    inputs[part] = inputs[part].clone()
    inputs[part][:61] = float("nan")
    results = run(ops.mla_attention, inputs, bounds)
    assert results[0][:61].isnan().any()
    assert all(torch.equal(ours[61:], clean[61:]) for ours, clean in zip(results, expected))


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
    prefix = torch.tensor([-1, 0], dtype=torch.int32)
    torch.library.opcheck(torch.ops.r1lab.mla_attention, (*leaves, bounds, prefix, 0.3))


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
