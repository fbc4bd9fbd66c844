"""A tiny policy, hand-made groups and a bandit-like task that the trainer tests share."""

import torch
from accelerate import Accelerator
from transformers import DeepseekV3Config, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from r1lab.config import GRPOConfig
from r1lab.grpo.trainer import GRPOTrainer
from r1lab.model import PolicyForCausalLM
from r1lab.rollout import HFRolloutEngine, RolloutEngine, SamplingParams
from r1lab.types import Completion, Prompt, Rollout, RolloutGroup

VOCAB, EOS = 40, 1
GOOD = range(2, 10)


def make_policy(seed: int = 0, with_mtp: bool = False, **changes) -> PolicyForCausalLM:
    torch.manual_seed(seed)
    fields = {
        "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "moe_intermediate_size": 16,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 8,
        "q_lora_rank": None, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "initializer_range": 0.1,
        "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": None,
    }  # fmt: skip
    return PolicyForCausalLM(DeepseekV3Config(**{**fields, **changes}), with_mtp=with_mtp).eval()


def make_qwen(seed: int = 0) -> PreTrainedModel:
    """A policy of transformers', with tied embeddings."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen2Config(vocab_size=VOCAB, num_key_value_heads=1, initializer_range=0.1, eos_token_id=EOS,
                         pad_token_id=None, bos_token_id=0, tie_word_embeddings=True, **sizes)  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def make_config(**changes) -> GRPOConfig:
    fields = {
        "num_generations": 4, "generation_batch_size": 16, "max_completion_length": 10, "reward_funcs": ["good_share"],
        "learning_rate": 1e-3, "warmup_steps": 0, "max_steps": 20,
    }  # fmt: skip
    return GRPOConfig(**{**fields, **changes})


def make_groups(advantages: list[list[float]], seed: int = 0, finish_reason: str = "stop") -> list[RolloutGroup]:
    """One group a row of advantages, of random tokens and lengths; the recorded logps are noise."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(2, VOCAB, (length,), generator=generator).tolist()

    groups = []
    for row in advantages:
        rollouts = []
        for advantage in row:
            ids = tokens(2, 9)
            rollouts.append(Rollout(Completion(ids, [-1.0] * len(ids), finish_reason), "", advantage=advantage))
        groups.append(RolloutGroup(Prompt("", tokens(3, 6)), rollouts))
    return groups


def good_share(completion_ids, **columns):
    """Share of the completion's tokens that are in GOOD: about 0.2 at random."""
    return [sum(token in GOOD for token in ids) / len(ids) for ids in completion_ids]


def good_share_of_even_prompts(completion_ids, is_even, **columns):
    """The same on every other prompt, 0 on the rest: their groups have nothing to teach."""
    return [share if even else 0.0 for share, even in zip(good_share(completion_ids), is_even, strict=True)]


def make_trainer(
    policy: PreTrainedModel, reward=good_share, accelerator=None, num_prompts=16, vllm=None, **changes
) -> GRPOTrainer:
    """vllm: a `VLLMRolloutEngine` to sample with, in place of the native engine."""
    config = make_config(**changes)
    if policy.config.model_type == "deepseek_v3":
        engine = RolloutEngine(policy, eos_token_id=EOS, num_speculative_tokens=config.num_speculative_tokens)
        rollout_metrics = engine.drafting.take_metrics
    else:  # a group a batch, since these completions depend on those sampled beside them
        engine = HFRolloutEngine(policy, eos_token_id=EOS, max_batch=config.num_generations)
        rollout_metrics = dict
    generate = vllm.generate_together if vllm else engine.generate
    params = SamplingParams(
        n=config.num_generations,
        max_tokens=config.max_completion_length,
        temperature=config.temperature,
        record_routing=config.router_replay,
    )
    return GRPOTrainer(
        policy,
        sample=lambda prompt_ids, seeds: generate(prompt_ids, params, seeds=seeds),
        decode=str,
        reward_funcs=[reward],
        prompts=[Prompt(f"p{i}", [2 + i, 3, 4][: 2 + i % 2], {"is_even": i % 2 == 0}) for i in range(num_prompts)],
        pad_token_id=EOS,
        config=config,
        accelerator=accelerator or Accelerator(cpu=True),
        rollout_metrics=rollout_metrics,
        on_new_weights=vllm.weights_changed if vllm else lambda: None,
    )


def weights_of(policy) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in policy.state_dict().items()}


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    return max((ours[name] - theirs[name]).abs().max().item() for name in ours)


def are_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
