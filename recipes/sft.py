"""Supervised fine-tuning by TRL's `SFTTrainer`: the stages of r1.py and distill.py that imitate.

    accelerate launch recipes/sft.py --model_name_or_path DIR --dataset_name FILE.jsonl --output_dir runs/sft

The loss is on the completions only. The aux-loss-free routing bias goes on being updated, once an optimiser step and at
the speed of pretraining and RL (DeepSeek-V3, section 2.1.2): the traces are one narrow kind of text, and left alone the
bias would keep the balance of another.
"""

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from r1_zero import ScriptArguments
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint
from trl import SFTConfig, SFTTrainer, TrlParser

from r1lab.config import at_least
from r1lab.demonstrations import encode_demonstrations, load_demonstrations
from r1lab.loading import load_policy
from r1lab.model import update_routing_bias
from r1lab.stages import run_stage


@dataclass
class SFTArguments:
    """How to fine-tune.

    Raises:
        ValueError: a value is out of range; the message names it and the fix.
    """

    sft_learning_rate: float = field(default=1e-5, metadata={"help": "Peak AdamW learning rate; falls to 0 (cosine)."})
    sft_num_epochs: int = field(default=2, metadata={"help": "Passes over the traces."})
    sft_batch_size: int = field(default=16, metadata={"help": "Traces an optimiser step and process."})
    sft_max_length: int = field(default=4096, metadata={"help": "Longer traces are left out (prompt included)."})
    sft_save_steps: int = field(default=500, metadata={"help": "Save every so many steps, for a resume."})

    def __post_init__(self) -> None:
        for name in ("sft_num_epochs", "sft_batch_size", "sft_max_length", "sft_save_steps"):
            at_least(self, name, 1)
        if self.sft_learning_rate <= 0:
            raise ValueError(f"sft_learning_rate={self.sft_learning_rate}: must be positive")


class RoutingBalance(TrainerCallback):
    """One step of aux-loss-free balancing after each optimiser step, and its numbers in the trainer's log."""

    def __init__(self, policy: Any, speed: float):
        self.policy, self.speed = policy, speed
        self.metrics: dict[str, float] = {}

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.metrics = update_routing_bias(self.policy, self.speed)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if logs is not None and "loss" in logs:
            logs |= self.metrics


def fine_tune(
    model_name: str,
    rows: Dataset,
    directory: str | Path,
    args: SFTArguments,
    *,
    seed: int,
    routing_bias_speed: float,
    num_epochs: int | None = None,
) -> dict[str, Any]:
    """Trains a model on `prompt` and `completion`, and saves it with its tokenizer as `<directory>/model`.

    A run that was cut short goes on from its last checkpoint in `<directory>/checkpoints`.

    Returns: the facts of the stage: `model`, the numbers of traces, of those too long, of epochs, steps and tokens,
        and the loss of the first and the last optimiser step.
    """
    directory = Path(directory)
    checkpoints = directory / "checkpoints"
    last = get_last_checkpoint(str(checkpoints)) if checkpoints.is_dir() else None
    # transformers' resume loads by parameter name, and would miss experts, which files keep one by one.
    policy, tokenizer = load_policy(last or model_name)
    encoded, num_too_long = encode_demonstrations(rows, tokenizer, max_length=args.sft_max_length)
    balance = RoutingBalance(policy, routing_bias_speed)
    trainer = SFTTrainer(
        model=policy,
        args=_trainer_config(args, checkpoints, seed, num_epochs or args.sft_num_epochs),
        train_dataset=encoded,
        processing_class=tokenizer,
        callbacks=[balance],
    )
    trainer.train(resume_from_checkpoint=last)
    if PartialState().is_main_process:
        policy.save_pretrained(directory / "model")
        tokenizer.save_pretrained(directory / "model")
        shutil.rmtree(checkpoints, ignore_errors=True)
    PartialState().wait_for_everyone()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {
        "model": "model",
        "num_traces": len(encoded),
        "num_too_long": num_too_long,
        "num_epochs": num_epochs or args.sft_num_epochs,
        "num_steps": trainer.state.global_step,
        "num_tokens": sum(map(len, encoded["input_ids"])) * (num_epochs or args.sft_num_epochs),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **balance.metrics,
    }


def _trainer_config(args: SFTArguments, directory: Path, seed: int, num_epochs: int) -> SFTConfig:
    return SFTConfig(
        output_dir=str(directory),
        learning_rate=args.sft_learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        adam_beta2=0.95,
        num_train_epochs=num_epochs,
        per_device_train_batch_size=args.sft_batch_size,
        max_length=None,
        train_sampling_strategy="group_by_length",
        save_steps=args.sft_save_steps,
        save_total_limit=1,
        logging_steps=0.1,
        logging_first_step=True,
        seed=seed,
        # Recomputed layers would count their experts' load twice.
        gradient_checkpointing=False,
        # Each process counts its own load; broadcasting would overwrite it with the first one's.
        ddp_broadcast_buffers=False,
        bf16=_mixed_precision() == "bf16",
        fp16=_mixed_precision() == "fp16",
        report_to="none",
    )


def _mixed_precision() -> str:
    """What `accelerate launch` was told; TRL would take bf16 by itself."""
    return os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


@dataclass
class OutputArguments:
    """Where the model goes."""

    output_dir: str = field(default="runs/sft", metadata={"help": "The model is saved in its subdirectory `model`."})
    routing_bias_speed: float = field(default=1e-3, metadata={"help": "Speed of the routing bias; 0 leaves it alone."})
    seed: int = field(default=0, metadata={"help": "Seed of the order of the traces."})


def main(script: ScriptArguments, args: SFTArguments, output: OutputArguments) -> None:
    if script.dataset_name is None:
        raise ValueError("name the traces with --dataset_name: a hub id, or a .jsonl or .parquet file")
    rows = load_demonstrations(script.dataset_name, script, load_policy(script.model_name_or_path)[1])
    settings = {"model": script.model_name_or_path, "dataset": script.dataset_name, **vars(args)}
    directory = Path(output.output_dir)
    facts, _ = run_stage(
        directory,
        settings | {"seed": output.seed, "routing_bias_speed": output.routing_bias_speed},
        lambda: fine_tune(
            script.model_name_or_path, rows, directory, args, seed=output.seed,
            routing_bias_speed=output.routing_bias_speed,
        ),
    )  # fmt: skip
    print(
        f"{facts['num_traces']} traces, loss {facts['first_loss']:.3f} -> {facts['last_loss']:.3f}: {directory}/model"
    )


if __name__ == "__main__":
    try:
        main(*TrlParser((ScriptArguments, SFTArguments, OutputArguments)).parse_args_and_config())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
