"""Every test that takes `backend` runs on each backend that isolates on this machine."""

import functools
import os
from pathlib import Path

import pytest

from rewards.code import SandboxUnavailable, sandbox_report


@functools.cache
def is_isolating(name: str) -> bool:
    try:
        return sandbox_report(name).is_strong
    except SandboxUnavailable:
        return False


@pytest.fixture(params=["bwrap", "landlock"])
def backend(request) -> str:
    if not is_isolating(request.param):
        pytest.skip(f"{request.param} does not isolate on this machine")
    return request.param


@pytest.fixture
def data() -> Path:
    """The directory of public data sets, which the repository does not hold."""
    if "R1LAB_DATA" not in os.environ:
        pytest.skip("R1LAB_DATA is not set")
    return Path(os.environ["R1LAB_DATA"])
