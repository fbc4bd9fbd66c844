"""The public ops hand their arguments to the Triton kernels as they should, and name wrong ones."""

import pytest
import torch
from gpu_cases import DEVICE, assert_close, leaf

from r1lab.kernels import ops, reference


def op_cases():
    x, idx = leaf(5, 16), torch.tensor([[0, 1]] * 5, device=DEVICE)
    cos = torch.zeros(5, 4, device=DEVICE)
    cu_seqlens = torch.tensor([0, 5], dtype=torch.int32, device=DEVICE)
    table, lengths = torch.zeros(2, 1, dtype=torch.int32, device=DEVICE), torch.full((2,), 3, device=DEVICE).int()
    heads = [leaf(5, 2, 8, seed=seed) for seed in range(3)]
    caches = leaf(1, 4, 16).detach(), leaf(1, 4, 8).detach()
    uniform = torch.tensor([0.1, 0.5, 0.9, 0.3, 0.7], dtype=torch.float64, device=DEVICE)
    return {
        "rms_norm": (x, leaf(16), 1e-6),
        "moe_gate": (x, torch.zeros(16, device=DEVICE), 2, 1, 2, True, 1.0),
        "moe_experts": (x, idx, leaf(5, 2), leaf(2, 16, 16), leaf(2, 16, 8)),
        "token_logps": (x, leaf(20, 16), torch.arange(5, device=DEVICE), 1.0),
        "rope": (leaf(5, 2, 8), cos + 0.6, cos + 0.8, True),
        "mla_attention": (heads[0], leaf(5, 2, 4), heads[1], leaf(5, 4), heads[2], cu_seqlens, 5, 0.3),
        "mla_decode": (leaf(2, 2, 16).detach(), leaf(2, 2, 8).detach(), *caches, table, lengths, 0.2),
        "sampling": (x.detach(), uniform, 1.0, 5, 0.9, None),
    }


@pytest.mark.parametrize("name", op_cases())
def test_ops_run_the_triton_kernel(name, monkeypatch):
    monkeypatch.setattr(ops, "_use_cpu_kernel", lambda *tensors: False)
    monkeypatch.setattr(ops, "_use_gpu_kernel", lambda *tensors: True)
    monkeypatch.setattr(ops.reference, name, None)
    args = op_cases()[name]
    ours = getattr(ops, name)(*args)
    monkeypatch.undo()
    theirs = getattr(reference, name)(*args)
    ours, theirs = (each if isinstance(each, tuple) else (each,) for each in (ours, theirs))
    for mine, expected in zip(ours, theirs, strict=True):
        assert_close(mine.float(), expected.float(), 1e-5)


@pytest.mark.skipif(DEVICE == "cuda", reason="there the kernels run")
def test_tensors_on_the_cpu_never_reach_triton(monkeypatch):
    monkeypatch.setattr(ops, "_gpu", None)
    for name, args in op_cases().items():
        getattr(ops, name)(*args)


@pytest.mark.parametrize(
    ("name", "index", "shape", "message"),
    [
        ("rope", 0, (5, 2, 7), r"x_THR has shape \(5, 2, 7\)"),
        ("rope", 1, (5, 3), r"cos_TP \(5, 3\)"),
        ("mla_decode", 3, (1, 4, 7), r"\(1, 4, 7\)"),
        ("mla_decode", 5, (3,), r"\(3,\)"),
        ("sampling", 0, (5,), r"logits_BV has shape \(5,\)"),
        ("sampling", 1, (4,), r"uniform_B \(4,\)"),
        ("sampling", 5, (15,), r"banned_V has shape \(15,\)"),
    ],
)
def test_wrong_shapes_are_named(name, index, shape, message):
    args = list(op_cases()[name])
    args[index] = torch.zeros(shape, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        getattr(ops, name)(*args)


@pytest.mark.parametrize(
    "settings", [(-1.0, 0, 1.0), (1.0, -1, 1.0), (1.0, 0, 0.0), (1.0, 0, 1.1), (float("nan"), 0, 1)]
)
def test_wrong_sampling_settings_are_named(settings):
    logits, uniform, *_ = op_cases()["sampling"]
    with pytest.raises(ValueError, match="expected temperature >= 0"):
        ops.sampling(logits, uniform, *settings)


def test_random_numbers_on_the_cpu():
    numbers = ops.random_uniform(torch.tensor([3, 3, 4]), torch.tensor([0, 1, 0]))
    assert numbers.dtype == torch.float64 and len(set(numbers.tolist())) == 3
