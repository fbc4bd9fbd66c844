import pytest
import torch

from r1lab.kernels.build import load_extension


@pytest.fixture(scope="session")
def cpu_kernels():
    """Skips where the kernels cannot be built; test_build.py says whether that is right."""
    if not load_extension():
        pytest.skip("no CPU kernels here")


@pytest.fixture
def each_thread_count():
    """Calls a function under 1, 2 and 3 threads and returns the three results."""
    before = torch.get_num_threads()

    def run(function):
        results = []
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            results.append(function())
        return results

    yield run
    torch.set_num_threads(before)
