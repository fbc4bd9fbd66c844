"""Compile the Triton kernels ahead for A100, H100 and B200, without a GPU, and print what they take.

    python tests/bench/compile_gpu_kernels.py [--op mla_attention ...] [--capability 80 90 100]

One row per kernel: its least work (operations, bytes) with the time an H100 cannot beat, then per target registers a
thread, shared memory a program in KiB, and bytes spilled a thread. Ends with status 1 when a kernel spills or does not
compile.
"""

import argparse
import os
import sys
import warnings
from pathlib import Path

if os.environ.pop("TRITON_INTERPRET", "0") == "1":
    print("TRITON_INTERPRET is set: ignored here, kernels are compiled")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpu_compile import Launch, compile_launch, record_launches  # noqa: E402
from gpu_kernel_cases import Case, Cost, all_cases  # noqa: E402
from triton.compiler import CompilationError  # noqa: E402

from r1lab.kernels.gpu.launch import tiles_for  # noqa: E402


def launches_of(case: Case, capability: int) -> dict[tuple[str, str], list[Launch]]:
    """(direction, kernel) -> its launches that differ in compile-time constants."""
    found: dict[tuple[str, str], list[Launch]] = {}
    with tiles_for(capability), record_launches() as launches:
        args = case.inputs("meta")
        outputs = case.launch_forward(args)
        num_forward = len(launches)
        if case.launch_backward is not None:
            case.launch_backward(args, outputs)
    for index, launch in enumerate(launches):
        same = found.setdefault(("forward" if index < num_forward else "backward", launch.name), [])
        if all(launch.kwargs != other.kwargs for other in same):
            same.append(launch)
    return found


def resources(launches: list[Launch], capability: int) -> tuple[str, bool]:
    """The table's cell for one target, the worst of the launches, and whether nothing spills."""
    try:
        compiled = [compile_launch(launch, capability) for launch in launches]
    except (CompilationError, RuntimeError) as error:
        return f"{type(error).__name__}: {error}", False
    registers, shared, spilled = (
        max(getattr(each, name) for each in compiled) for name in ("registers", "shared", "spilled")
    )
    limit = {80: 163, 90: 227, 100: 227}.get(capability, 99) * 1024
    mark = " !" if spilled or shared > limit else ""
    return f"{registers:>4} {shared / 1024:>6.1f} {spilled:>5}{mark}", not mark


def cost_text(cost: Cost | None) -> str:
    if cost is None:
        return f"{'':>9} {'':>9} {'':>10}"
    return f"{cost.flops / 1e9:>9.2f} {cost.bytes / 1e6:>9.1f} {cost.floor_us:>10.1f}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="*", help="only these ops")
    parser.add_argument("--capability", type=int, nargs="+", default=[80, 90, 100])
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*FP_FUSION.*")
    titles = "".join(f" | sm_{capability}: regs KiB spill" for capability in options.capability)
    print(f"{'kernel':<31} {'GFLOP':>9} {'MB':>9} {'H100 us >=':>10}{titles}")
    all_fit = True
    for case in all_cases():
        if options.op and case.op not in options.op:
            continue
        print(f"-- {case.op}, {str(case.dtype).removeprefix('torch.')}, {case.size}")
        by_target = [launches_of(case, capability) for capability in options.capability]
        for direction, name in by_target[0]:
            cells = []
            for capability, launches in zip(options.capability, by_target, strict=True):
                if capability < case.least_capability:
                    cells.append(f" | {f'needs sm_{case.least_capability}':<22}")
                    continue
                cell, fits = resources(launches[direction, name], capability)
                cells.append(f" | {cell:<22}")
                all_fit &= fits
            cost = case.costs[direction].get(name.split("/")[1])
            print(f"{direction:<8} {name.split('/')[1]:<22} {cost_text(cost)}{''.join(cells)}", flush=True)
        for direction, costs in case.costs.items():
            for name, cost in costs.items():
                if not any(name == key[1].split("/")[1] for key in by_target[0]):
                    print(f"{direction:<8} {name:<22} {cost_text(cost)} | PyTorch", flush=True)
    if not all_fit:
        raise SystemExit("a kernel spills, takes too much shared memory, or does not compile: see the marks")


if __name__ == "__main__":
    main()
