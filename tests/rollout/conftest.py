import pytest

from r1lab.kernels.build import load_extension


@pytest.fixture(scope="session")
def cpu_kernels():
    """Skips where the kernels cannot be built; tests/kernels/test_build.py says whether that is right."""
    if not load_extension():
        pytest.skip("no CPU kernels here")
