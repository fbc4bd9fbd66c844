"""Names on the command line -> a policy, its tokenizer and encoded prompts."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetsError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from r1lab.config import GRPOConfig
from r1lab.model import PolicyForCausalLM
from r1lab.precision import is_fp8_config, load_fp8_pretrained
from r1lab.tasks import TASKS, encode_prompts, load_task
from r1lab.types import Prompt

SYSTEM_PROMPT = (
    "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The assistant "
    "first thinks about the reasoning process in the mind and then provides the user with the answer. The reasoning "
    "process and answer are enclosed within <think> </think> and <answer> </answer> tags, respectively, i.e., "
    "<think> reasoning process here </think> <answer> answer here </answer>."
)
"""R1-Zero's template (DeepSeek-R1, table 1): a system message for chat models, a preamble for base models."""

PROMPT_COLUMNS = ("prompt", "question", "problem")
SOLUTION_COLUMNS = ("solution", "answer")
EVAL_SEED = 1


class LoadingError(ValueError):
    """A model or dataset cannot be loaded; the message names it and the fix."""


def load_policy(name: str, with_mtp: bool | Literal["auto"] = False) -> tuple[torch.nn.Module, Any]:
    """The policy and its tokenizer, in fp32 on the CPU.

    `name` is a checkpoint directory, a `.gguf` file (dequantised) or a hub id. DeepSeek-V3 checkpoints load as our
    `PolicyForCausalLM` (a directory in FP8 dequantised), everything else as transformers' `AutoModelForCausalLM`.
    Dropout is off: the loss compares the policy that sampled with the one that trains. with_mtp: load the
    multi-token-prediction module too; "auto": where the checkpoint's config has one.

    Raises:
        LoadingError: nothing there, not a causal language model, or no module where one is asked for.
    """
    path, given = Path(name), name
    location: dict[str, str] = {}
    if path.suffix == ".gguf":
        if not path.is_file():
            raise LoadingError(f"model_name_or_path {name!r}: no such file")
        name, location = str(path.parent), {"gguf_file": path.name}
    elif (path.is_absolute() or name.startswith(".") or name.count("/") > 1) and not path.is_dir():
        raise LoadingError(f"model_name_or_path {name!r}: no such directory")
    try:
        config = AutoConfig.from_pretrained(name, **location)
        is_ours = config.model_type == "deepseek_v3"
        model_class = PolicyForCausalLM if is_ours else AutoModelForCausalLM
        if with_mtp == "auto":
            with_mtp = is_ours and config.num_mtp_layers > 0
        if with_mtp and not is_ours:
            raise ValueError(f"model_type {config.model_type!r} has no multi-token-prediction module that is supported")
        module = {"with_mtp": True} if with_mtp else {}
        if is_ours and path.is_dir() and is_fp8_config(config):
            policy = load_fp8_pretrained(path, **module)
        else:
            policy = model_class.from_pretrained(name, dtype=torch.float32, **module, **location)
        tokenizer = AutoTokenizer.from_pretrained(name, **location)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise LoadingError(
            f"model_name_or_path {given!r} cannot be loaded: {reason}; give a directory with config.json, weights and "
            "tokenizer, a .gguf file, or a hub id"
        ) from error
    if location:
        _forget_quantization(policy)
    _turn_off_dropout(policy)
    _drop_unusable_pad_token(tokenizer, policy)
    return policy, tokenizer


def _forget_quantization(policy: torch.nn.Module) -> None:
    """Loading from GGUF dequantised the weights; a checkpoint must not claim that they still are."""
    for holder, names in ((policy.config, ("quantization_config",)), (policy, ("hf_quantizer", "is_quantized",
                          "quantization_method"))):  # fmt: skip
        for name in names:
            if name in vars(holder):
                delattr(holder, name)


def _turn_off_dropout(policy: torch.nn.Module) -> None:
    for module in policy.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0


def _drop_unusable_pad_token(tokenizer: Any, policy: torch.nn.Module) -> None:
    """Some tokenizers have a pad token that the model has no embedding for; the end token pads as well (masked)."""
    num_embeddings = policy.get_input_embeddings().num_embeddings
    if tokenizer.pad_token_id is not None and not 0 <= tokenizer.pad_token_id < num_embeddings:
        tokenizer.pad_token = tokenizer.eos_token


def load_prompts(
    script: Any, tokenizer: Any, model_config: Any, config: GRPOConfig, num_held_out: int
) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
    """Training prompts, and held-out prompts by split name.

    An embedded task gives one held-out split per difficulty (`n3`, `n4`, ...); a dataset gives `test` when
    `eval_dataset_name` is set, else none.

    Raises:
        LoadingError, ValueError: see `load_rows` and `encode_prompts`.
    """
    context = getattr(model_config, "max_position_embeddings", None) or 1 << 30
    max_length = context - config.max_completion_length
    if max_length < 1:
        raise ValueError(
            f"max_completion_length={config.max_completion_length} fills the model's context of {context} tokens; "
            "lower it to leave room for the prompt"
        )
    if script.dataset_name is None:
        train = load_task(script.task, "train", script.num_train_problems, config.seed)
        held_out = {
            f"n{difficulty}": load_task(script.task, "test", num_held_out, EVAL_SEED, difficulty)
            for difficulty in TASKS[script.task]
        }
    else:
        train = load_rows(script.dataset_name, script, tokenizer)
        held_out = {}
        if script.eval_dataset_name is not None:
            rows = load_rows(script.eval_dataset_name, script, tokenizer)
            held_out["test"] = rows.select(range(min(num_held_out, len(rows))))
    encoded = {split: encode_prompts(rows, tokenizer, max_length=max_length) for split, rows in held_out.items()}
    return encode_prompts(train, tokenizer, max_length=max_length), encoded


def load_rows(name: str, script: Any, tokenizer: Any) -> Dataset:
    """A dataset with `prompt` and `solution` columns, the problems put into R1-Zero's template.

    Raises:
        LoadingError: no such file or dataset, or no column with the problem.
    """
    rows = read_dataset(name, script)
    prompt_column = _find_column(rows, script.prompt_column, PROMPT_COLUMNS, "prompt_column", name)
    prompts = [build_prompt(problem, tokenizer, script.system_prompt) for problem in rows[prompt_column]]
    others = rows.remove_columns(sorted({prompt_column, "prompt"} & set(rows.column_names)))
    solution_column = script.solution_column or next((c for c in SOLUTION_COLUMNS if c in others.column_names), None)
    if solution_column is not None and solution_column != "solution":
        _find_column(others, solution_column, (), "solution_column", name)
        others = others.rename_column(solution_column, "solution")
    # A dataset without columns has forgotten its number of rows.
    return others.add_column("prompt", prompts) if others.column_names else Dataset.from_dict({"prompt": prompts})


def build_prompt(problem: str | list[dict], tokenizer: Any, system_prompt: str | None = None) -> str | list[dict]:
    """A problem in R1-Zero's template: messages for chat models, else text. Messages stay as they are."""
    if not isinstance(problem, str):
        return problem
    system_prompt = SYSTEM_PROMPT if system_prompt is None else system_prompt
    if getattr(tokenizer, "chat_template", None) is not None:
        return [{"role": "system", "content": system_prompt}, {"role": "user", "content": problem}]
    return f"{system_prompt} User: {problem} Assistant:"


def read_dataset(name: str, script: Any) -> Dataset:
    """A dataset's rows as they are: of a hub id, or of a local .jsonl, .json or .parquet file, also as .jsonl.gz.

    Raises:
        LoadingError: no such file or dataset.
    """
    suffix = Path(name.removesuffix(".gz")).suffix
    kinds = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}
    if suffix in kinds and not os.path.isfile(name):
        raise LoadingError(f"dataset {name!r}: no such file")
    try:
        if suffix in kinds:
            return load_dataset(kinds[suffix], data_files=name, split="train")
        return load_dataset(name, script.dataset_config, split=script.dataset_train_split)
    except (OSError, ValueError, DatasetsError) as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise LoadingError(
            f"dataset {name!r} cannot be loaded: {reason}; give a hub id, or a local .jsonl or .parquet file"
        ) from error


def _find_column(rows: Dataset, wanted: str | None, usual: tuple[str, ...], option: str, name: str) -> str:
    column = wanted or next((c for c in usual if c in rows.column_names), None)
    if column is None or column not in rows.column_names:
        tried = repr(wanted) if wanted else " or ".join(map(repr, usual))
        raise LoadingError(
            f"dataset {name!r} has no column {tried}, only {', '.join(rows.column_names)}; name it with --{option}"
        )
    return column
