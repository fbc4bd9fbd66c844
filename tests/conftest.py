"""Without a GPU the Triton kernels run in Triton's interpreter. It is chosen when Triton is first imported, which trl
does: so it is set here, before any test module is loaded."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items):
    # Lanes that a mask leaves out may hold anything; NumPy, which the interpreter computes with, tells us so.
    quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")
    for item in items:
        if item.path.name.startswith("test_gpu_"):
            item.add_marker(quiet)
