"""The kernel floor: few ops, each with a plain PyTorch reference and a compiled CPU version. Use `r1lab.kernels.ops`."""
