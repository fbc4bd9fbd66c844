import pytest
import torch
from gpu_cases import DEVICE, assert_close, assert_same_function, leaf

from r1lab.kernels.gpu import rope
from r1lab.kernels.reference.rope import rope as reference_rope


def angles(num_tokens, num_pairs):
    positions = torch.arange(num_tokens, device=DEVICE)[:, None] * 1.7
    turn = positions * torch.linspace(1, 0.01, num_pairs, device=DEVICE)
    return turn.cos(), turn.sin()


def test_reference_turns_complex_numbers():
    x, (cos, sin) = leaf(5, 3, 12).detach(), angles(5, 6)
    turned = torch.view_as_complex(x.view(5, 3, 6, 2)) * torch.complex(cos, sin)[:, None]
    assert_close(reference_rope(x, cos, sin, True), torch.cat([turned.real, turned.imag], -1), 2e-5)
    halves = torch.cat([x[..., 0::2], x[..., 1::2]], -1)
    assert torch.equal(reference_rope(halves, cos, sin, False), reference_rope(x, cos, sin, True))


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("shape", [(7, 3, 16), (1, 1, 2), (0, 2, 8), (5, 2, 12), (40, 5, 64), (3, 1, 22)], ids=str)
def test_matches_reference(shape, interleave):
    x, (cos, sin) = leaf(*shape), angles(shape[0], shape[2] // 2)
    assert_same_function(
        lambda: rope(x, cos, sin, interleave), lambda: reference_rope(x, cos, sin, interleave), (x,), 1e-6
    )


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(interleave, dtype):
    x, (cos, sin) = leaf(9, 2, 16, dtype=dtype), angles(9, 8)
    assert_same_function(
        lambda: rope(x, cos, sin, interleave), lambda: reference_rope(x, cos, sin, interleave), (x,), 1e-2
    )


@pytest.mark.parametrize("interleave", [True, False])
@pytest.mark.parametrize("view", [lambda x: x[..., 12:], lambda x: x.transpose(0, 1)[..., :12], lambda x: x[..., 1::2]])
def test_views(view, interleave):
    wide = leaf(6, 6, 24)
    cos, sin = angles(6, 6)
    assert_same_function(
        lambda: rope(view(wide), cos, sin, interleave),
        lambda: reference_rope(view(wide), cos, sin, interleave),
        (wide,),
    )


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab_gpu.rope.default, (leaf(6, 2, 8), *angles(6, 4), True, False))
