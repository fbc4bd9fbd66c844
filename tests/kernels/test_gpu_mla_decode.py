import pytest
import torch
from gpu_cases import DEVICE, HALF_DTYPES, assert_close, assert_same_function, gpu_module, leaf

from r1lab.kernels.gpu import mla_decode
from r1lab.kernels.reference.mla_attention import mla_attention as reference_attention
from r1lab.kernels.reference.mla_decode import mla_decode as reference_decode

#   lengths, H, C, R, page size
CASES = [
    ([37, 1, 20], 4, 32, 16, 8),
    ([5], 17, 24, 8, 1),  # more heads than a tile, widths that fill no tile
    ([0, 19, 0], 1, 16, 16, 32),  # rows without a token
    ([], 2, 16, 16, 8),
    ([64], 2, 40, 4, 7),
]


def build_case(lengths, H, C, R, page_size, dtype=torch.float32, seed=0):
    """Pages lie in the pool in a shuffled order; pages of no row hold NaN."""
    B, num_pages = len(lengths), max(1, -(-max(lengths, default=1) // page_size))
    generator = torch.Generator().manual_seed(seed)
    table = torch.randperm(B * num_pages + 3, generator=generator)[: B * num_pages].view(B, num_pages).int()
    kv, pe = (torch.full((B * num_pages + 3, page_size, width), torch.nan) for width in (C, R))
    for b, length in enumerate(lengths):
        for j in range(length):
            kv[table[b, j // page_size], j % page_size] = torch.randn(C, generator=generator)
            pe[table[b, j // page_size], j % page_size] = torch.randn(R, generator=generator)
    q_latent, q_pe = leaf(B, H, C, seed=1, dtype=dtype).detach(), leaf(B, H, R, seed=2, dtype=dtype).detach()
    caches = (kv.to(DEVICE, dtype), pe.to(DEVICE, dtype), table.to(DEVICE))
    return q_latent, q_pe, *caches, torch.tensor(lengths, dtype=torch.int32, device=DEVICE), (C + R) ** -0.5


def assert_matches(args, tolerance=2e-5):
    return assert_same_function(lambda: mla_decode(*args), lambda: reference_decode(*args), (), tolerance)[0]


@pytest.fixture
def short_splits(monkeypatch):
    monkeypatch.setattr(gpu_module("mla_decode"), "_LEAST_SPLIT", 16)


def test_reference_is_attention_over_the_latents():
    """One head, key = [latent; rope], value = latent: the last query of the naive path."""
    q_latent, q_pe, kv, pe, table, lengths, scale = build_case([9], 1, 16, 8, 16)
    kv, pe = kv[table[0, 0], :9], pe[table[0, 0], :9]
    queries = (q_latent.expand(9, 1, 16), q_pe.expand(9, 1, 8))
    cu_seqlens = torch.tensor([0, 9], device=DEVICE)
    expected = reference_attention(*queries, kv[:, None], pe, kv[:, None], cu_seqlens, 9, scale)[-1]
    ours = reference_decode(q_latent, q_pe, *build_case([9], 1, 16, 8, 16)[2:])
    assert_close(ours[0], expected, 1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(case):
    assert_matches(build_case(*case))


@pytest.mark.parametrize("lengths", [[40, 16, 17, 0], [33]], ids=str)
@pytest.mark.usefixtures("short_splits")
def test_several_splits(lengths):
    assert_matches(build_case(lengths, 3, 16, 16, 8))


@pytest.mark.usefixtures("short_splits")
def test_number_of_splits_is_bounded(monkeypatch):
    monkeypatch.setattr(gpu_module("mla_decode"), "_MOST_SPLITS", 2)
    assert_matches(build_case([150], 1, 16, 16, 8))


@pytest.mark.parametrize("dtype", HALF_DTYPES)
def test_half_precision(dtype):
    assert_matches(build_case([19, 6], 2, 16, 16, 8, dtype), tolerance=1e-2)


@pytest.mark.usefixtures("short_splits")
def test_large_scores_stay_finite():
    q_latent, *rest = build_case([40], 2, 16, 16, 8)
    assert_matches((q_latent * 1000, *rest), tolerance=1e-3)


@pytest.mark.usefixtures("short_splits")
def test_a_row_does_not_depend_on_its_company():
    q_latent, q_pe, kv, pe, table, lengths, scale = build_case([40, 7, 21], 2, 16, 16, 8)
    together = mla_decode(q_latent, q_pe, kv, pe, table, lengths, scale)
    for b in range(3):
        row = slice(b, b + 1)
        assert torch.equal(together[row], mla_decode(q_latent[row], q_pe[row], kv, pe, table[row], lengths[row], scale))


def test_a_cache_that_would_be_copied_is_refused():
    q_latent, q_pe, kv, pe, *rest = build_case([7], 2, 16, 16, 8)
    with pytest.raises(ValueError, match="contiguous"):
        mla_decode(q_latent, q_pe, kv.transpose(1, 2).contiguous().transpose(1, 2), pe, *rest)


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab_gpu.mla_decode.default, build_case([5], 2, 16, 8, 4))
