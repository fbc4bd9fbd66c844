import pytest
import torch
import torch.nn.functional as F
from gpu_cases import DEVICE, HALF_DTYPES, assert_close, assert_same_function, gpu_module, leaf, outputs_and_grads

from r1lab.kernels.gpu import mla_attention
from r1lab.kernels.reference.mla_attention import mla_attention as reference_attention

#   lengths, H, N, R, W
CASES = [
    ([17], 2, 32, 16, 32),
    ([5, 1, 20], 1, 16, 16, 16),
    ([0, 33, 0, 7], 1, 24, 8, 40),  # empty sequences, widths that fill no tile
    ([1], 3, 5, 2, 3),
    ([0, 0], 2, 16, 16, 16),
]


def build_case(lengths, H, N, R, W, dtype=torch.float32):
    T = sum(lengths)
    shapes = ((T, H, N), (T, H, R), (T, H, N), (T, R), (T, H, W))
    tensors = [leaf(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]
    cu_seqlens = torch.tensor([0, *lengths], device=DEVICE).cumsum(0).int()
    return tensors, (cu_seqlens, max(lengths, default=0), (N + R) ** -0.5)


def assert_matches(tensors, rest, leaves=None, tolerance=3e-5):
    return assert_same_function(
        lambda: mla_attention(*tensors, *rest),
        lambda: reference_attention(*tensors, *rest),
        leaves or tensors,
        tolerance,
    )


def test_reference_is_torchs_attention():
    (q_nope, q_pe, k_nope, k_pe, v), rest = build_case([9], 2, 8, 4, 6)
    q, k = torch.cat([q_nope, q_pe], -1), torch.cat([k_nope, k_pe[:, None].expand(-1, 2, -1)], -1)
    expected = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v)), is_causal=True)
    assert_close(reference_attention(q_nope, q_pe, k_nope, k_pe, v, *rest), expected.transpose(0, 1), 2e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    assert_matches(*build_case(*case))


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_precision(dtype):
    assert_matches(*build_case([19, 6], 2, 16, 16, 16, dtype), tolerance=2e-2)


def test_several_tiles(monkeypatch):
    """Tiles of 16 queries and 32 keys, and the other way round: the diagonal crosses them off their corners."""
    for M, S in ((16, 32), (32, 16)):
        tiles = {"BLOCK_M": M, "BLOCK_S": S, "STAGES": 1, "num_warps": 4}
        monkeypatch.setattr(gpu_module("mla_attention"), "_tiles", lambda dtype, kernel, tiles=tiles: tiles)
        assert_matches(*build_case([50, 3], 1, 16, 16, 16))


def test_slices_of_projections_are_read_in_place():
    """As the model has them: q_nope is a slice of the query projection; k_nope and v are slices of one tensor."""
    q, kv, kv_a = leaf(11, 2, 24), leaf(11, 2, 32, seed=1), leaf(11, 28, seed=2)
    _, rest = build_case([8, 3], 2, 16, 8, 16)

    def run(attention):
        return attention(q[..., :16], q[..., 16:], kv[..., :16], kv_a[:, 20:], kv[..., 16:], *rest)

    assert_same_function(lambda: run(mla_attention), lambda: run(reference_attention), (q, kv, kv_a), 3e-5)


def test_large_scores_stay_finite():
    tensors, rest = build_case([20], 1, 16, 16, 16)
    tensors[0].data *= 1000
    assert_matches(tensors, rest, tolerance=2e-3)


def test_a_sequence_does_not_depend_on_its_neighbours():
    tensors, (cu_seqlens, longest, scale) = build_case([6, 21, 4], 2, 16, 16, 16)
    with torch.no_grad():
        packed = mla_attention(*tensors, cu_seqlens, longest, scale)
        alone = [x[6:27] for x in tensors]
        cu_alone = torch.tensor([0, 21], device=DEVICE, dtype=torch.int32)
        assert torch.equal(packed[6:27], mla_attention(*alone, cu_alone, 21, scale))


def test_nan_stays_in_its_sequence_and_behind_it():
    tensors, rest = build_case([6, 8], 1, 16, 16, 16)
    tensors = [x.detach().clone() for x in tensors]
    tensors[2][9, 0, 0] = float("nan")
    is_nan = mla_attention(*tensors, *rest).isnan().flatten(1).any(1)
    assert is_nan.tolist() == [row >= 9 for row in range(14)]


def test_the_same_bits_again():
    tensors, rest = build_case([37], 1, 16, 16, 16)
    first, again = (outputs_and_grads(lambda: mla_attention(*tensors, *rest), tensors) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_opcheck():
    tensors, rest = build_case([3], 1, 8, 4, 8)
    torch.library.opcheck(torch.ops.r1lab_gpu.mla_attention.default, (*tensors, *rest))
