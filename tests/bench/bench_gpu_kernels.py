"""Run and time every Triton kernel on the GPU that is here, beside the H100's floor.

    python tests/bench/bench_gpu_kernels.py [--op mla_attention ...] [--reference]

Median milliseconds of the forward and of the backward (Triton's do_bench: the L2 cache is flushed in between), and the
share of the floor reached: 100 % would be an H100 that moves every byte once, or multiplies without a pause.
--reference times the plain PyTorch reference as well. That the kernels are right on this GPU is what
`pytest tests/kernels -k gpu` says.
"""

import argparse
import importlib
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def differentiable(args: tuple, case) -> tuple:
    """The arguments that the op has a gradient for, as leaves."""
    takes_gradient = {"rope": (0,), "moe_gate": (0,)}.get(case.op, range(len(args)))
    tensors = [args[i] for i in takes_gradient if isinstance(args[i], torch.Tensor)]
    return tuple(tensor.requires_grad_() for tensor in tensors if tensor.is_floating_point())


def time_case(case, function, args: tuple) -> dict[str, float]:
    """Milliseconds by direction."""
    from triton.testing import do_bench

    times = {}
    with torch.no_grad():
        times["forward"] = do_bench(lambda: function(*args), return_mode="median")
    if "backward" in case.costs:
        leaves = differentiable(args, case)
        outputs = function(*args)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        output = next(out for out in outputs if out.requires_grad)
        grad = torch.ones_like(output)
        times["backward"] = do_bench(
            lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True), return_mode="median"
        )
    return times


def print_case(case, with_reference: bool) -> None:
    from r1lab.kernels import gpu

    args = case.inputs("cuda")
    ours = time_case(case, getattr(gpu, case.op), args)
    theirs = {}
    if with_reference:
        module = importlib.import_module(f"r1lab.kernels.reference.{case.op}")
        theirs = time_case(case, getattr(module, case.op), args)
    for direction, time_ms in ours.items():
        costs = case.costs[direction].values()
        floor_ms = sum(cost.floor_us for cost in costs) / 1e3
        rate = sum(cost.flops for cost in costs) / time_ms / 1e9
        moved = sum(cost.bytes for cost in costs) / time_ms / 1e6
        beside = f" {theirs[direction]:>9.3f} {theirs[direction] / time_ms:>6.1f}" if theirs else ""
        print(
            f"{case.op:<14} {case.size:<34} {direction:<8} {time_ms:>9.3f} {rate:>8.1f} {moved:>8.0f} "
            f"{floor_ms:>9.3f} {100 * floor_ms / time_ms:>6.1f}%{beside}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", nargs="*", help="only these ops")
    parser.add_argument("--reference", action="store_true", help="time the PyTorch reference, too")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(
            "no GPU here: nothing to time. tests/bench/compile_gpu_kernels.py compiles the kernels without one, "
            "and pytest tests/kernels -k gpu runs them in Triton's interpreter."
        )
    from gpu_kernel_cases import all_cases

    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"{'op':<14} {'size':<34} {'':<8} {'ms':>9} {'TFLOP/s':>8} {'GB/s':>8} {'floor ms':>9} {'of it':>7}")
    for case in all_cases():
        if not options.op or case.op in options.op:
            print_case(case, options.reference)
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
