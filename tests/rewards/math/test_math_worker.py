"""Whatever is asked, and from wherever: decided, in time, without leaving a process behind."""

import asyncio
import multiprocessing
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from rewards import accuracy_reward
from rewards.math import Policy, check, verdict, verify
from rewards.math.worker import pool

HARD = (r"5", r"\int_0^1 x^x \sin(x^2) e^{\tan x}\,dx")
EVALUATE = Policy(evaluate_operators=True)
NEEDS_SYMPY = ("2|x|<4", "(-2,2)")
STARTING = 120
"""Seconds that a worker may need to start, and to answer, on a busy machine."""
verify_at_leisure = partial(verify, timeout_s=STARTING)


@pytest.fixture(scope="module", autouse=True)
def warm_worker():
    assert check(*NEEDS_SYMPY, timeout_s=STARTING).rule == "sympy: sets"
    yield
    pool().close()


def test_sympy_decides_what_the_rules_leave_open():
    assert verify_at_leisure("2^x<8", "x<3")
    assert check(r"\sin x=0", "x=0", timeout_s=STARTING).rule == "sympy: sets"
    assert not verify_at_leisure(r"\sin x=0", "x=0")


def test_sums_are_evaluated_on_request():
    assert not verify_at_leisure("55", r"\sum_{k=1}^{10}k")
    assert verify_at_leisure("55", r"\sum_{k=1}^{10}k", policy=EVALUATE)
    assert verify_at_leisure(r"\frac12", r"\int_0^1 x\,dx", policy=EVALUATE)
    assert verify_at_leisure("1", r"\lim_{x\to 0}\frac{\sin x}{x}", policy=EVALUATE)
    assert not verify_at_leisure("54", r"\sum_{k=1}^{10}k", policy=EVALUATE)


def test_a_late_worker_is_killed_and_replaced():
    before = pool().counts.copy()
    late = pool().idle.queue[-1]
    verdict = check(*HARD, policy=EVALUATE, timeout_s=0.5)
    assert verdict.reason == "timeout" and not verdict.equal
    assert late.process.poll() is not None
    assert pool().counts["timeouts"] == before["timeouts"] + 1
    assert verify("2|x|<6", "(-3,3)", timeout_s=STARTING)
    assert pool().counts["started"] == before["started"] + 1


def test_timeouts_are_not_cached_but_asked_once_a_batch():
    assert check(*HARD, policy=EVALUATE, timeout_s=0.25).reason == "timeout"
    assert verify("2|x|<20", "(-10,10)", timeout_s=STARTING)  # A worker is ready again, or the next were our failure.
    timeouts, cached = pool().counts["timeouts"], verdict._check.cache_info().currsize
    completions = [rf"\boxed{{{HARD[1]}}}"] * 4
    assert accuracy_reward(completions=completions, answer=[HARD[0]] * 4, policy=EVALUATE, timeout_s=0.25) == [0.0] * 4
    assert pool().counts["timeouts"] == timeouts + 1
    assert verdict._check.cache_info().currsize == cached


def test_a_dead_worker_is_replaced():
    assert verify("2|x|<8", "(-4,4)", timeout_s=STARTING)
    worker = pool().idle.queue[-1]
    worker.process.kill()
    worker.process.wait()
    assert verify("2|x|<10", "(-5,5)", timeout_s=STARTING)


def test_our_own_failure_is_no_verdict_and_is_not_cached(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pool(), "slots", threading.BoundedSemaphore(1))
        pool().slots.acquire()
        assert check("2|x|<12", "(-6,6)", timeout_s=0.1).reason == "error"
        assert accuracy_reward(completions=[r"\boxed{(-6,6)}"], answer=["2|x|<12"], timeout_s=0.1) == [None]
    assert verify("2|x|<12", "(-6,6)", timeout_s=STARTING)


def test_threads_and_asyncio():
    pairs = [(f"|x|<{n}", f"(-{n},{n})") for n in range(10, 16)]
    with ThreadPoolExecutor(6) as executor:
        assert all(executor.map(lambda pair: verify(*pair, timeout_s=STARTING), pairs))

    async def gather():
        return await asyncio.gather(
            *(asyncio.to_thread(verify, f"|x|>{n}", f"x>{n} or x<-{n}", timeout_s=STARTING) for n in range(4))
        )

    assert all(asyncio.run(gather()))


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_has_workers_of_its_own():
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(
        target=lambda: sender.send((verify("2|x|<14", "(-7,7)", timeout_s=STARTING), pool().counts["started"]))
    )
    child.start()
    assert receiver.poll(60) and receiver.recv() == (True, 1)
    child.join(60)
    assert child.exitcode == 0
    assert verify("2|x|<16", "(-8,8)", timeout_s=STARTING), "the parent's worker still answers to the parent"


def test_the_callers_threads_and_signals_are_left_alone():
    import signal

    before = signal.getsignal(signal.SIGALRM) if hasattr(signal, "SIGALRM") else None
    names = []
    thread = threading.Thread(target=lambda: names.append(check("2|x|<18", "(-9,9)", timeout_s=STARTING).reason))
    thread.start()
    thread.join(60)
    assert names == ["match"]
    assert not hasattr(signal, "SIGALRM") or signal.getsignal(signal.SIGALRM) == before
