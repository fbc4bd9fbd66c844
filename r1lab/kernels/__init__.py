"""The kernel floor: each op has a plain PyTorch reference and a compiled CPU version. Use `r1lab.kernels.ops`."""
