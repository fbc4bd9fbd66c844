"""The sandbox by numbers: runs per second and core, what many runs leave behind, HumanEval, and cold starts beside it.

    python tests/bench/bench_code.py [--backend landlock bwrap] [--runs 400] [--leak 10000] [--human_eval FILE.jsonl.gz]

Runs per core come from CPU seconds of this process and all its children, so that other work on the machine counts
less; wall seconds are printed too. The cold start is a new interpreter per run (`python -I -S -c`), without isolation:
what the fork server saves.
"""

import argparse
import gc
import gzip
import json
import os
import resource
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from rewards.code import SandboxUnavailable, close_sandboxes, code_reward, run_program, run_tests, sandbox_report
from rewards.code.backends import interpreter

SQUARE = "def f(n):\n    return n * n\n"
CALLS = [{"type": "call", "args": [n], "expected": n * n} for n in range(10)]
KINDS = {
    "script": lambda backend: run_program("print(int(input()) ** 2)", "12", require=backend),
    "10 calls": lambda backend: run_tests(SQUARE, CALLS, entry_point="f", require=backend),
    "1 assert": lambda backend: run_tests(SQUARE, [{"type": "assert", "code": "assert f(3) == 9"}], require=backend),
    "cold start": lambda backend: subprocess.run([interpreter(), "-I", "-S", "-c", "print(144)"], capture_output=True),
}


def cpu_seconds():
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(kind, backend, runs):
    """(CPU ms, wall ms) of one run. Children count once they have ended, so the fork servers' start is part of it."""
    close_sandboxes()
    cpu, wall = cpu_seconds(), time.perf_counter()
    for _ in range(runs):
        KINDS[kind](backend)
    wall = time.perf_counter() - wall
    close_sandboxes()
    return (cpu_seconds() - cpu) / runs * 1e3, wall / runs * 1e3


def footprint():
    """What this process holds: descriptors, child processes, its own memory in MiB."""
    gc.collect()
    children = 0
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children") as file:
            children += len(file.read().split())
    with open("/proc/self/statm") as file:
        resident = int(file.read().split()[1]) * resource.getpagesize() >> 20
    directories = sum(name.startswith("rewards-code-") for name in os.listdir("/tmp"))
    return {"descriptors": len(os.listdir("/proc/self/fd")), "children": children, "MiB": resident, "/tmp": directories}


def leak(backend, runs):
    """Runs of every outcome, by two threads; what this process holds along the way and after closing."""
    programs = ["print(1)", "1 / 0", "open('f', 'w').write('x' * 10**6)", "import os; os.mkdir('d'); os._exit(3)"]
    start = footprint()
    with ThreadPoolExecutor(2) as executor:
        for done in range(0, runs, runs // 4):
            list(executor.map(lambda n: run_program(programs[n % 4], require=backend), range(runs // 4)))
            print(f"  after {done + runs // 4:>6} runs: {footprint()}")
    close_sandboxes()
    print(f"  before: {start}\n  after closing: {footprint()}")


def human_eval(path, backend):
    with gzip.open(path) as file:
        problems = [json.loads(line) for line in file]
    columns = {name: [problem[name] for problem in problems] for name in ("test", "entry_point")}
    liar = "class Liar(int):\n    __eq__ = lambda self, other: True\n    __hash__ = int.__hash__\n"
    answers = {
        "canonical": [problem["canonical_solution"] for problem in problems],
        "return None": ["    return None\n" for _ in problems],
        "__eq__ lies": [f"```python\n{liar}def {p['entry_point']}(*args):\n    return Liar()\n```" for p in problems],
    }
    prompts = [problem["prompt"] for problem in problems]
    for name, completions in answers.items():
        started = time.perf_counter()
        scores = code_reward(prompts, completions, timeout_s=20, require=backend, **columns)
        seconds = time.perf_counter() - started
        print(f"  {name:<12} {scores.count(1.0)} of {len(scores)} pass, {scores.count(None)} None, {seconds:.1f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", nargs="+", default=["landlock", "bwrap"])
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--leak", type=int, default=0, help="runs of the leak check; 0 leaves it out")
    parser.add_argument("--human_eval", help="HumanEval.jsonl.gz")
    options = parser.parse_args()
    for backend in options.backend:
        try:
            print(sandbox_report(backend))
        except SandboxUnavailable as error:
            print(error)
            continue
        print(f"{'':<12} {'CPU ms':>8} {'wall ms':>8} {'runs/s of one core':>19}")
        for kind in KINDS:
            cpu, wall = measure(kind, backend, options.runs)
            if backend == "bwrap" and kind != "cold start":
                print(f"{kind:<12} {'':>8} {wall:>8.2f}")  # Its inner processes are not in our accounts.
            else:
                print(f"{kind:<12} {cpu:>8.2f} {wall:>8.2f} {1e3 / cpu:>19.0f}")
        if options.human_eval:
            human_eval(options.human_eval, backend)
        if options.leak:
            leak(backend, options.leak)


if __name__ == "__main__":
    main()
