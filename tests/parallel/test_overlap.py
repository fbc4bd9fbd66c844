"""Two pieces of work take turns at their waits."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from r1lab.parallel import all_to_all
from r1lab.parallel.overlap import take_turns


@pytest.fixture
def thread():
    with ThreadPoolExecutor(1) as pool:
        yield pool


def work(log: list[str], name: str, waits: int, fails: bool = False):
    def run() -> None:
        for i in range(waits):
            log.append(f"{name}{i}")
            all_to_all._do_meanwhile()
        log.append(f"{name} ends")
        if fails:
            raise ValueError(f"{name} fails")

    return run


@pytest.mark.parametrize(
    ("waits", "expected"),
    {
        (2, 2): ["F0", "B0", "F1", "B1", "F ends", "B ends"],
        (0, 2): ["F ends", "B0", "B1", "B ends"],
        (3, 1): ["F0", "B0", "F1", "B ends", "F2", "F ends"],
        (0, 0): ["F ends", "B ends"],
    }.items(),
)
def test_they_change_at_every_wait(thread, waits, expected):
    log: list[str] = []
    take_turns(work(log, "F", waits[0]), work(log, "B", waits[1]), thread)
    assert log == expected
    all_to_all._do_meanwhile()  # nobody is left to hand over to


@pytest.mark.parametrize("failing", ["F", "B"])
def test_a_failure_is_raised_when_the_other_is_done(thread, failing):
    log: list[str] = []
    with pytest.raises(ValueError, match=f"{failing} fails"):
        take_turns(work(log, "F", 1 + (failing == "B"), failing == "F"), work(log, "B", 2, failing == "B"), thread)
    assert {"F ends", "B ends"} <= set(log)
    take_turns(work(log, "F", 1), work(log, "B", 1), thread)  # and the thread is there for the next slot
