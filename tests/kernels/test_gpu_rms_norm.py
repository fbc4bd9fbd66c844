import pytest
import torch
from gpu_cases import DEVICE, assert_same_function, gpu_module, leaf, outputs_and_grads

from r1lab.kernels import reference
from r1lab.kernels.gpu import rms_norm

EPS = 1e-6


def both(x, weight):
    return lambda: rms_norm(x(), weight, EPS), lambda: reference.rms_norm(x(), weight, EPS)


@pytest.mark.parametrize("shape", [(1, 128), (7, 72), (0, 16), (3, 5, 48), (100, 33), (5,), (9, 1), (2, 2500)], ids=str)
def test_matches_reference(shape):
    x, weight = leaf(*shape), leaf(shape[-1], seed=1)
    assert_same_function(*both(lambda: x, weight), (x, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    x, weight = leaf(21, 40, dtype=dtype), leaf(40, seed=1, dtype=dtype)
    assert_same_function(*both(lambda: x, weight), (x, weight), 1e-2)


@pytest.mark.parametrize("view", [lambda x: x[..., :32], lambda x: x[..., 16:], lambda x: x.transpose(0, 1)[..., 3:35]])
def test_slices_are_read_in_place(view):
    wide, weight = leaf(2, 6, 48), leaf(32, seed=1)
    assert_same_function(*both(lambda: view(wide), weight), (wide, weight))


def test_transposed_and_expanded_inputs():
    x, weight, row = leaf(24, 7), leaf(24, seed=1), leaf(1, 24)
    assert_same_function(*both(x.t, weight), (x, weight))
    assert_same_function(*both(lambda: row.expand(5, 24), weight), (row, weight))


def test_zero_row_and_nan_row():
    x = torch.ones(3, 16, device=DEVICE)
    x[0], x[2, 4] = 0, float("nan")
    y = rms_norm(x, torch.ones(16, device=DEVICE), EPS)
    assert torch.equal(y[0], torch.zeros(16, device=DEVICE))
    assert y.isnan().any(1).tolist() == [False, False, True]


def test_many_rows_share_a_program(monkeypatch):
    monkeypatch.setattr(gpu_module("rms_norm"), "_BACKWARD_PROGRAMS", 2)
    monkeypatch.setattr(gpu_module("rms_norm"), "_TILE", 64)
    x, weight = leaf(37, 24), leaf(24, seed=1)
    assert_same_function(*both(lambda: x, weight), (x, weight))


def test_the_same_bits_again():
    x, weight = leaf(300, 24), leaf(24, seed=1)
    first, again = (outputs_and_grads(lambda: rms_norm(x, weight, EPS), (x, weight)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_opcheck():
    torch.library.opcheck(torch.ops.r1lab_gpu.rms_norm.default, (leaf(6, 24), leaf(24, seed=1), EPS))
