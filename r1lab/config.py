"""Settings of a GRPO run. Names are TRL's wherever TRL has the concept."""

from dataclasses import dataclass, field

LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo")
SCALE_REWARDS = ("group", "batch", "none")
VLLM_MODES = ("colocate", "server")
IMPORTANCE_SAMPLING_MODES = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
DISPATCH_DTYPES = ("native", "bf16", "fp8")


@dataclass
class GRPOConfig:
    """Everything the GRPO trainer reads. Lengths are in tokens.

    Raises:
        ValueError: a value is out of range; the message names it and the fix.
    """

    # --- rollouts
    num_generations: int = field(default=8, metadata={"help": "Completions per prompt (G, the group size)."})
    generation_batch_size: int = field(
        default=64,
        metadata={
            "help": "Completions sampled per step over all processes; a multiple of num_generations x processes."
        },
    )
    max_completion_length: int = field(default=256, metadata={"help": "Longest completion."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature; the loss uses it too."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling: keep the smallest set of this mass."})
    top_k: int = field(default=0, metadata={"help": "Sample among the k likeliest tokens; 0 = all."})
    dynamic_sampling: bool = field(
        default=False,
        metadata={
            "help": "Replace groups whose rewards are all equal by groups of further prompts (DAPO, section 3.2)."
        },
    )
    num_speculative_tokens: int = field(
        default=0,
        metadata={
            "help": "Draft so many tokens at a time with the policy's multi-token-prediction module, where that is "
            "faster; 0 = never. Completions are the same either way."
        },
    )
    max_resamples: int = field(default=3, metadata={"help": "Most rounds of dynamic sampling a step."})

    # --- rollouts by vLLM
    use_vllm: bool = field(default=False, metadata={"help": "Sample with vLLM; needs pip install 'trl[vllm]'."})
    vllm_mode: str = field(
        default="colocate",
        metadata={"help": "server: a `vllm serve` of its own; colocate: inside the training processes, on their GPUs."},
    )
    vllm_model_impl: str = field(default="vllm", metadata={"help": "colocate: vllm's model code or transformers'."})
    vllm_server_base_url: str | None = field(
        default=None, metadata={"help": "server: its address, http://HOST:PORT; host and port play no part then."}
    )
    vllm_server_host: str = field(default="0.0.0.0", metadata={"help": "server: its host."})
    vllm_server_port: int = field(default=8000, metadata={"help": "server: its port."})
    vllm_server_timeout: float = field(
        default=240.0, metadata={"help": "server: wait so many seconds for it to be up."}
    )
    vllm_group_port: int = field(default=51216, metadata={"help": "server: the port that weights are sent through."})
    vllm_gpu_memory_utilization: float = field(
        default=0.3, metadata={"help": "colocate: share of a GPU's memory that vLLM may take."}
    )
    vllm_max_model_length: int | None = field(
        default=None, metadata={"help": "colocate: longest prompt + completion; default: the model's context."}
    )
    vllm_tensor_parallel_size: int = field(
        default=1, metadata={"help": "1: colocate gives each process an engine of its own; a server has its own flag."}
    )
    vllm_enable_sleep_mode: bool = field(
        default=False, metadata={"help": "colocate: vLLM gives its memory back between rollouts."}
    )
    vllm_importance_sampling_correction: bool = field(
        default=True, metadata={"help": "Weigh by training's over vLLM's probability of what was sampled."}
    )
    vllm_importance_sampling_mode: str = field(
        default="sequence_mask",
        metadata={"help": f"How those weights are bounded: {', '.join(IMPORTANCE_SAMPLING_MODES)}."},
    )
    vllm_importance_sampling_clip_max: float | None = field(default=3.0, metadata={"help": "Their upper bound."})
    vllm_importance_sampling_clip_min: float | None = field(default=None, metadata={"help": "Their lower bound."})

    # --- rewards
    reward_funcs: list[str] = field(
        default_factory=lambda: ["accuracy", "format"],
        metadata={"help": "Names of the `rewards` registry, or dotted paths to functions."},
    )
    reward_weights: list[float] | None = field(default=None, metadata={"help": "One weight per reward; default 1."})

    # --- loss
    loss_type: str = field(default="dapo", metadata={"help": f"One of {', '.join(LOSS_TYPES)}."})
    scale_rewards: str = field(default="group", metadata={"help": f"Advantage scale: {', '.join(SCALE_REWARDS)}."})
    epsilon: float = field(default=0.2, metadata={"help": "Lower clip of the ratio."})
    epsilon_high: float | None = field(default=None, metadata={"help": "Upper clip of the ratio; default epsilon."})
    beta: float = field(default=0.0, metadata={"help": "Weight of the k3 KL to the reference policy; 0 = none kept."})
    sync_ref_model: bool = field(default=False, metadata={"help": "Move the reference policy towards the policy."})
    ref_model_sync_steps: int = field(default=64, metadata={"help": "Sync the reference every so many steps."})
    ref_model_mixup_alpha: float = field(default=0.6, metadata={"help": "Share of the policy in a sync (TR-DPO)."})
    mask_truncated_completions: bool = field(default=False, metadata={"help": "Leave cut completions out of the loss."})
    num_iterations: int = field(default=1, metadata={"help": "Passes over each generated batch (mu)."})
    steps_per_generation: int = field(default=1, metadata={"help": "Optimiser updates each pass is split into."})

    mtp_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Keep the multi-token-prediction module trained on what the policy writes, with this weight; the "
            "policy itself is updated as without. 0 = leave it."
        },
    )

    # --- optimisation
    learning_rate: float = field(default=1e-6, metadata={"help": "Peak AdamW learning rate."})
    weight_decay: float = field(default=0.0, metadata={"help": "AdamW weight decay."})
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW beta1."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW beta2."})
    lr_scheduler_type: str = field(default="constant_with_warmup", metadata={"help": "transformers' scheduler name."})
    warmup_steps: int = field(default=3, metadata={"help": "Updates of linear warm-up."})
    max_grad_norm: float = field(default=1.0, metadata={"help": "Gradient norm clip; 0 = off."})
    max_steps: int = field(default=100, metadata={"help": "Generate-and-update steps."})
    max_tokens_per_batch: int = field(
        default=4096,
        metadata={
            "help": "Tokens computed in a micro-batch; bounds memory, not the update. Padding counts where the "
            "policy computes it, a prompt once where it is shared."
        },
    )
    max_skipped_steps: int = field(
        default=5, metadata={"help": "Stop after this many steps in a row with a loss or gradient that is not finite."}
    )
    routing_bias_speed: float = field(
        default=1e-3,
        metadata={"help": "Speed gamma of the aux-loss-free balancing bias (DeepSeek-V3, 2.1.2); 0 = off."},
    )
    fp8: bool = field(
        default=False,
        metadata={
            "help": "Compute linear layers and experts in FP8 (DeepSeek-V3, section 3.3), in the native engine too."
        },
    )
    router_replay: bool = field(
        default=False,
        metadata={
            "help": "Train each token through the experts that it was sampled with, weighed by the training pass's own "
            "gate (Rollout Routing Replay, R3: Ma et al. 2025, arXiv:2510.11370); for the native engine."
        },
    )
    expert_parallel_size: int = field(
        default=1,
        metadata={
            "help": "Neighbouring processes that share one set of routed experts in training (V3, section 3.2); "
            "1 = every process has all."
        },
    )
    expert_dispatch_dtype: str = field(
        default="native", metadata={"help": f"How tokens travel to experts: {', '.join(DISPATCH_DTYPES)}."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of prompts and sampling."})

    def __post_init__(self) -> None:
        _one_of(self, "loss_type", LOSS_TYPES)
        _one_of(self, "scale_rewards", SCALE_REWARDS)
        _one_of(self, "expert_dispatch_dtype", DISPATCH_DTYPES)
        for name in ("generation_batch_size", "max_completion_length", "num_iterations", "steps_per_generation",
                     "max_steps", "max_tokens_per_batch", "max_skipped_steps", "expert_parallel_size"):  # fmt: skip
            at_least(self, name, 1)
        for name in ("temperature", "learning_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        for name in (
            "top_k",
            "beta",
            "max_grad_norm",
            "max_resamples",
            "warmup_steps",
            "routing_bias_speed",
            "num_speculative_tokens",
            "mtp_loss_weight",
        ):
            at_least(self, name, 0)
        if self.num_generations < 2:
            raise ValueError(f"num_generations={self.num_generations}: a group needs at least 2 completions to compare")
        if self.generation_batch_size % self.num_generations:
            raise ValueError(
                f"generation_batch_size={self.generation_batch_size} is not divisible by "
                f"num_generations={self.num_generations}; use a multiple of it, for example "
                f"{max(1, round(self.generation_batch_size / self.num_generations)) * self.num_generations}"
            )
        if self.fp8 and self.expert_parallel_size > 1:
            raise ValueError(
                f"fp8=True computes whole experts, and expert_parallel_size={self.expert_parallel_size} spreads them; "
                "use one of the two"
            )
        if self.reward_weights is not None and len(self.reward_weights) != len(self.reward_funcs):
            raise ValueError(
                f"reward_weights has {len(self.reward_weights)} entries for {len(self.reward_funcs)} reward_funcs; "
                "give one weight per function"
            )
        self._check_vllm()

    def _check_vllm(self) -> None:
        _one_of(self, "vllm_mode", VLLM_MODES)
        _one_of(self, "vllm_importance_sampling_mode", IMPORTANCE_SAMPLING_MODES)
        at_least(self, "vllm_server_timeout", 0)
        if not 0 < self.vllm_gpu_memory_utilization <= 1:
            raise ValueError(f"vllm_gpu_memory_utilization={self.vllm_gpu_memory_utilization}: use a share in (0, 1]")
        if self.vllm_tensor_parallel_size != 1:
            raise ValueError(
                f"vllm_tensor_parallel_size={self.vllm_tensor_parallel_size}: only 1; to spread the model over GPUs "
                "use vllm_mode=server and start it with --tensor-parallel-size"
            )
        url = self.vllm_server_base_url
        if url is not None and not url.startswith(("http://", "https://")):
            raise ValueError(f"vllm_server_base_url={url!r}: begin it with http:// or https://")
        if self.use_vllm and self.num_speculative_tokens:
            raise ValueError(
                f"num_speculative_tokens={self.num_speculative_tokens} drafts in the native engine only; leave it at 0 "
                "with use_vllm (a server takes --speculative-config)"
            )
        if self.use_vllm and self.router_replay:
            raise ValueError(
                "router_replay=True needs rollouts that record their experts, which vLLM's do not; leave it off with "
                "use_vllm, or sample with the native engine (use_vllm=False)"
            )
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if low is not None and high is not None and low >= high:
            raise ValueError(
                f"vllm_importance_sampling_clip_min={low}: must be below vllm_importance_sampling_clip_max={high}"
            )
        if low is None and high is None and self.vllm_importance_sampling_mode.endswith("truncate"):
            raise ValueError(
                f"vllm_importance_sampling_mode={self.vllm_importance_sampling_mode!r} needs a bound: set "
                "vllm_importance_sampling_clip_max or vllm_importance_sampling_clip_min"
            )

    @property
    def num_prompts(self) -> int:
        """Prompts per step over all processes."""
        return self.generation_batch_size // self.num_generations


def _one_of(config: GRPOConfig, name: str, choices: tuple[str, ...]) -> None:
    if getattr(config, name) not in choices:
        raise ValueError(f"{name}={getattr(config, name)!r}: use one of {', '.join(choices)}")


def at_least(config: object, name: str, bound: float) -> None:
    """Raises ValueError, naming the field and its value, when a field of a config is below `bound`."""
    if getattr(config, name) < bound:
        raise ValueError(f"{name}={getattr(config, name)}: must be at least {bound}")
