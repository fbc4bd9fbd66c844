"""Pretrain the embedded base: a DeepSeek-V3-style model of about two million parameters on the synthetic corpus.

    make pretrain    # two processes of one thread each write runs/base

Next-token prediction on what people write under a question (`r1lab/tasks/corpus.py`); the questions themselves, whose
numbers are random, are read but not predicted. The first part of the run reads mostly drills, the rest mostly the
mixed-quality corpus. Experts are kept balanced by the aux-loss-free routing bias.

With a multi-token-prediction module (DeepSeek-V3, section 2.2), which rollouts can draft with:

    python recipes/pretrain.py --mtp_loss_weight 0.3 --output_dir runs/base               # trained with the policy
    python recipes/pretrain.py --init_from data/base --train_mtp_only true \\
        --num_steps 400 --warmup_steps 20 --drill_steps 0 --output_dir runs/base_mtp      # on a policy that stays

The second command gives a finished base its module: every other weight of the checkpoint keeps its bits.
"""

import json
import math
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from muon import Muon
from torch.optim.lr_scheduler import LambdaLR
from transformers import DeepseekV3Config
from trl import TrlParser

from r1lab.config import at_least
from r1lab.loading import load_policy
from r1lab.model import PolicyForCausalLM, add_mtp, update_routing_bias
from r1lab.precision import enable_fp8
from r1lab.tasks.corpus import stream_documents
from r1lab.tasks.tokenizer import build_tokenizer


@dataclass
class PretrainConfig:
    """Settings of a pretraining run."""

    output_dir: str = field(default="runs/base", metadata={"help": "Where the checkpoint and its card go."})
    num_steps: int = field(default=2200, metadata={"help": "Optimiser steps."})
    tokens_per_batch: int = field(default=5120, metadata={"help": "Tokens a step, padding included, per process."})
    muon_learning_rate: float = field(default=0.02, metadata={"help": "Peak Muon learning rate (matrices)."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak AdamW learning rate (the rest)."})
    warmup_steps: int = field(default=50, metadata={"help": "Steps of linear warm-up."})
    decay_share: float = field(default=0.4, metadata={"help": "Last share of the run, in which the rate falls to 0."})
    weight_decay: float = field(default=0.05, metadata={"help": "Muon weight decay."})
    drill_steps: int = field(default=800, metadata={"help": "Steps of the opening part, mostly drills."})
    drill_first: float = field(default=0.6, metadata={"help": "Share of drills in the opening part."})
    drill: float = field(default=0.3, metadata={"help": "Share of drills afterwards."})
    routing_bias_speed: float = field(default=1e-3, metadata={"help": "Speed gamma of the routing bias update."})
    mtp_loss_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight lambda of the multi-token-prediction loss (DeepSeek-V3: 0.3, at the end 0.1); 0 = none."
        },
    )
    train_mtp_only: bool = field(
        default=False,
        metadata={"help": "Train nothing but the multi-token-prediction module, on the policy of init_from."},
    )
    save_steps: int = field(default=250, metadata={"help": "Save the model every so many steps."})
    logging_steps: int = field(default=20, metadata={"help": "Print the loss every so many steps."})
    init_from: str | None = field(default=None, metadata={"help": "Go on from this checkpoint of any causal LM."})
    fp8: bool = field(default=False, metadata={"help": "Compute linear layers and experts in FP8 (V3, section 3.3)."})
    seed: int = field(default=0, metadata={"help": "Seed of the initial weights and of the corpus."})

    def __post_init__(self) -> None:
        at_least(self, "mtp_loss_weight", 0)
        if self.train_mtp_only and self.init_from is None:
            raise ValueError("train_mtp_only=true needs the policy that the module is for: give init_from")
        if self.train_mtp_only and not self.mtp_loss_weight:
            self.mtp_loss_weight = 1.0  # the only loss there is: its weight means nothing to Muon and AdamW


def build_config(tokenizer) -> DeepseekV3Config:
    """The embedded default's architecture: V3's, with everything small."""
    return DeepseekV3Config(
        vocab_size=math.ceil(len(tokenizer) / 16) * 16,
        hidden_size=128,
        num_hidden_layers=4,
        first_k_dense_replace=1,
        intermediate_size=384,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=64,
        kv_lora_rank=32,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        n_routed_experts=8,
        num_experts_per_tok=2,
        n_shared_experts=1,
        moe_intermediate_size=128,
        n_group=1,
        topk_group=1,
        routed_scaling_factor=1.0,
        max_position_embeddings=1024,
        initializer_range=0.05,
        num_mtp_layers=0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )


def build_policy(config: PretrainConfig, tokenizer) -> torch.nn.Module:
    """A fresh policy, or the one of `init_from`; with a multi-token-prediction module where that is trained."""
    if config.init_from is None:
        policy = PolicyForCausalLM(build_config(tokenizer))
    else:
        keeps_module = config.mtp_loss_weight > 0 and not config.train_mtp_only  # trained alone, it starts afresh
        policy, _ = load_policy(config.init_from, with_mtp="auto" if keeps_module else False)
    if config.mtp_loss_weight:
        if not isinstance(policy, PolicyForCausalLM):
            raise ValueError(f"mtp_loss_weight={config.mtp_loss_weight} needs a DeepSeek-V3 policy; leave it out")
        add_mtp(policy)
    return policy


def set_training_mode(policy: torch.nn.Module, train_mtp_only: bool) -> None:
    """Everything learns, or the module alone: then the rest is in evaluation mode too, and counts no expert's load."""
    policy.train(not train_mtp_only)
    if train_mtp_only:
        policy.requires_grad_(False)
        policy.mtp.requires_grad_(True).train()


def stream_batches(
    documents: Iterator[str], tokenizer, tokens_per_batch: int, rng: random.Random
) -> Iterator[torch.Tensor]:
    """Endless [B, T] batches of right-padded documents; a pool is sorted by length so that little is padding."""
    vocabulary = tokenizer.get_vocab()
    pad, bos, eos = tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id
    while True:
        pool = [[bos, *(vocabulary[word] for word in next(documents).split()), eos] for _ in range(8192)]
        pool.sort(key=len)
        batches = []
        while pool:
            size = max(1, tokens_per_batch // len(pool[-1]))
            batches.append(pool[-size:])
            del pool[-size:]
        rng.shuffle(batches)
        for rows in batches:
            width = max(map(len, rows))
            yield torch.tensor([row + [pad] * (width - len(row)) for row in rows])


def mask_questions(input_ids: torch.Tensor, attention_mask: torch.Tensor, assistant_id: int) -> torch.Tensor:
    """Labels [B, T]: -100 on padding and up to and including "Assistant :"."""
    is_marker = input_ids == assistant_id
    colon = is_marker.int().argmax(dim=1, keepdim=True) + 1
    positions = torch.arange(input_ids.size(1), device=input_ids.device)
    return input_ids.masked_fill((attention_mask == 0) | (positions <= colon), -100)


def label_batch(input_ids: torch.Tensor, tokenizer) -> dict[str, torch.Tensor]:
    """What the policy's forward takes: padding masked, and answers alone as labels."""
    attention_mask = (input_ids != tokenizer.pad_token_id).long()
    labels = mask_questions(input_ids, attention_mask, tokenizer.convert_tokens_to_ids("Assistant"))
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def learning_rate_factor(step: int, config: PretrainConfig) -> float:
    """Warm-up, plateau, linear decay to 0."""
    left = (config.num_steps - step) / (config.decay_share * config.num_steps)
    return min((step + 1) / config.warmup_steps, 1.0, left)


def build_optimizers(model: torch.nn.Module, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embedding, head, gate and norms."""
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
    inner = {n: p for n, p in learning.items() if p.ndim >= 2 and ".layers." in n and ".gate.weight" not in n}
    outer = [p for n, p in learning.items() if n not in inner]
    muon = Muon(inner.values(), lr=config.muon_learning_rate, weight_decay=config.weight_decay)
    return [muon, torch.optim.AdamW(outer, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def main(config: PretrainConfig) -> None:
    accelerator = Accelerator()
    set_seed(config.seed)
    tokenizer = build_tokenizer()
    model = build_policy(config, tokenizer)
    set_training_mode(model, config.train_mtp_only)
    if config.fp8:
        enable_fp8(model)
    optimizers = build_optimizers(model, config)
    schedules = [LambdaLR(optimizer, lambda step: learning_rate_factor(step, config)) for optimizer in optimizers]
    model = accelerator.prepare(model)
    policy = accelerator.unwrap_model(model)

    seed = config.seed * 1000 + accelerator.process_index
    phases = [stream_documents(2 * seed, config.drill_first), stream_documents(2 * seed + 1, config.drill)]
    batches = [stream_batches(docs, tokenizer, config.tokens_per_batch, random.Random(seed)) for docs in phases]

    accelerator.print(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {len(tokenizer)}")
    options = {"mtp_loss_weight": config.mtp_loss_weight} if config.mtp_loss_weight else {}
    balanced = policy.mtp if config.train_mtp_only else policy
    start, num_tokens, losses, mtp_losses = time.time(), 0, [], []
    for step in range(config.num_steps):
        batch = label_batch(next(batches[0 if step < config.drill_steps else 1]), tokenizer)
        output = model(**batch, **options)
        accelerator.backward(output.loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        balance = update_routing_bias(balanced, config.routing_bias_speed)
        num_tokens += int(batch["attention_mask"].sum()) * accelerator.num_processes
        losses.append(output.loss.item())
        if options:
            mtp_losses.append(output.mtp_loss.item())
        if (step + 1) % config.logging_steps == 0:
            mean = _mean(losses[-config.logging_steps :])
            rate = num_tokens / (time.time() - start)
            load = f"max_vio {balance['moe/max_vio']:.2f} " if balance else ""  # a dense model has no experts
            draft = f"mtp_loss {_mean(mtp_losses[-config.logging_steps :]):.4f} " if mtp_losses else ""
            accelerator.print(
                f"step {step + 1}/{config.num_steps} loss {mean:.4f} {draft}{load}"
                f"{num_tokens / 1e6:.1f}M tokens {rate:,.0f} tok/s {time.time() - start:.0f} s",
                flush=True,
            )
        if (step + 1) % config.save_steps == 0 or step + 1 == config.num_steps:
            if accelerator.is_main_process:
                seconds = time.time() - start
                facts = {"num_processes": accelerator.num_processes, "tokens": num_tokens, "seconds": round(seconds)}
                save(policy, tokenizer, config, facts, losses, mtp_losses)
            accelerator.wait_for_everyone()


def save(policy, tokenizer, config: PretrainConfig, facts: dict, losses: list[float], mtp_losses: list[float]) -> None:
    """The checkpoint and its card. The module trained alone has a card of its own."""
    directory = Path(config.output_dir)
    policy.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    facts = {
        "steps": len(losses),
        "tokens": facts["tokens"],
        "seconds": facts["seconds"],
        "final_loss": round(_mean(losses[-100:]), 4),
        **({"final_mtp_loss": round(_mean(mtp_losses[-100:]), 4)} if mtp_losses else {}),
        "num_processes": facts["num_processes"],
        "config": {name: value for name, value in vars(config).items() if name != "output_dir"},
    }
    name = "mtp_training.json" if config.train_mtp_only else "pretraining.json"
    (directory / name).write_text(json.dumps(facts, indent=2) + "\n")


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main(TrlParser(PretrainConfig).parse_args_and_config()[0])
