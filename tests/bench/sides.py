"""What the benchmarks against peers share: interleaved rounds, medians, and tests/bench/results.json."""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results.json"
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=3, help="measured rounds; medians are reported")
    parser.add_argument("--core", type=int, default=None, help="pin this process to one core")
    parser.add_argument("--write", action="store_true", help="put the rows into tests/bench/results.json")


def pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


def timed(function: Callable[[], None]) -> dict[str, float]:
    """Seconds of one call: the whole process's CPU time, and wall."""
    starts = {name: clock() for name, clock in CLOCKS.items()}
    function()
    return {name: clock() - starts[name] for name, clock in CLOCKS.items()}


def interleave(sides: dict[str, Callable[[], dict[str, float]]], rounds: int) -> dict[str, dict[str, float]]:
    """Medians of what each side returns, over rounds in which every side runs once; one more round warms up."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name, run in sides.items():
            result = run()
            if index:
                seen[name].append(result)
            print(f"  round {index} {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in result.items()), flush=True)
    return {name: {key: median(r[key] for r in results) for key in results[0]} for name, results in seen.items()}


def row(name: str, ours: float, peer: float, must: float, unit: str, is_less_better: bool = False, **more) -> dict:
    """One line of results.json; ratio > 1 means that we are ahead."""
    ratio = peer / ours if is_less_better else ours / peer
    digits = {"ours": ours, "peer": peer, "ratio": ratio}
    return {"name": name, **{key: float(f"{value:.4g}") for key, value in digits.items()}, "must": must, "unit": unit,
            **more}  # fmt: skip


def report(rows: list[dict], write: bool) -> None:
    """Prints the rows; with `write`, replaces those of the same name in results.json and keeps the others."""
    for each in rows:
        print(f"{each['name']:<64} {each['ours']:>10.4g} {each['peer']:>10.4g} {each['ratio']:>7.2f}x "
              f"(must {each['must']:g}x)  {each['unit']}", flush=True)  # fmt: skip
    if not write:
        return
    facts = {"machine": machine(), "date": date.today().isoformat(), "command": command(sys.argv)}
    known = {each["name"]: each for each in (json.loads(RESULTS.read_text()) if RESULTS.exists() else [])}
    known |= {each["name"]: each | facts for each in rows}
    RESULTS.write_text(json.dumps(list(known.values()), indent=2) + "\n")


def command(arguments: list[str]) -> str:
    """As one types it in the repository; whose interpreter llama.cpp lives in is nobody's business."""
    options = list(arguments[1:])
    if "--llama_python" in options:
        options[options.index("--llama_python") + 1] = "PATH"
    return f"python {shlex.join([os.path.relpath(arguments[0], ROOT), *options])}"


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} while measuring"
