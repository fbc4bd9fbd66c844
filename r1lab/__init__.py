"""r1lab: R1-Zero style RL post-training with a DeepSeek-V3-style policy and its own kernels."""
