"""Solutions to imitate: dataset rows -> prompt and completion -> tokens for supervised fine-tuning.

Three layouts of public chain-of-thought data are read, told apart by their columns:

- chat: `messages` (open-r1's Mixture-of-Thoughts) or `conversations` (OpenThoughts); the last assistant turn is the
  completion, what comes before is the prompt;
- `prompt` and `completion` (TRL's), each text or messages;
- `problem` or `question`, with `generations` (OpenR1-Math: the first one whose `correctness_math_verify` or
  `correctness` is true), or with `solution` and `answer`.

Prompts go into the template that RL uses, so that what is learned here is what RL goes on from, and completions into
R1's: OpenThoughts' `<|begin_of_thought|>` tags become <think>, and what follows </think> is put into <answer> tags.
"""

from collections.abc import Iterator
from typing import Any

from datasets import Dataset

from r1lab.loading import LoadingError, build_prompt, read_dataset
from r1lab.tasks import encode_prompts
from rewards.text import completion_text

CHAT_COLUMNS = ("messages", "conversations")
PROBLEM_COLUMNS = ("problem", "question")
CORRECTNESS_COLUMNS = ("correctness_math_verify", "correctness")
ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of the roles -> transformers'."""
THOUGHT_TAGS = {
    "<|begin_of_thought|>": "<think>",
    "<|end_of_thought|>": "</think>",
    "<|begin_of_solution|>": "<answer>",
    "<|end_of_solution|>": "</answer>",
}


def load_demonstrations(name: str, script: Any, tokenizer: Any) -> Dataset:
    """A dataset with `prompt` and `completion`; rows without a usable completion are left out.

    Args:
        name: a hub id, or a local .jsonl or .parquet file.
        script: holds `dataset_config`, `dataset_train_split`, `system_prompt`.
        tokenizer: its chat template, or that it has none, decides the form of the prompts.

    Raises:
        LoadingError: no such dataset, none of the layouts above, or no row with a completion.
    """
    rows = read_dataset(name, script)
    pairs = []
    for index, row in enumerate(rows):
        prompt, completion = _read_row(row, name, index)
        if completion and completion.strip():
            prompt = build_prompt(_bare_problem(prompt), tokenizer, script.system_prompt)
            pairs.append({"prompt": prompt, "completion": to_template(completion)})
    if not pairs:
        raise LoadingError(f"dataset {name!r}: none of its {len(rows)} rows has a completion to learn from")
    return Dataset.from_list(pairs)


def to_template(text: str) -> str:
    """The completion in R1's template; one without a chain of thought stays as it is."""
    for theirs, ours in THOUGHT_TAGS.items():
        text = text.replace(theirs, ours)
    thought, closing, rest = text.partition("</think>")
    if not closing or "<answer>" in rest or not rest.strip():
        return text.strip()
    opening = "" if "<think>" in thought else "<think>"
    return f"{opening}{thought.lstrip()}{closing} <answer> {rest.strip()} </answer>"


def encode_demonstrations(rows: Dataset, tokenizer: Any, *, max_length: int) -> tuple[Dataset, int]:
    """Token ids and labels for TRL's `SFTTrainer`, and how many rows were longer than `max_length` and left out.

    The prompt's tokens are those that RL samples from, the completion ends in the end token, and only the completion
    has labels. A row is never cut: a trace without its end would teach not to stop.

    Returns: a dataset with `input_ids` and `labels` ([T] each, -100 on the prompt).

    Raises:
        ValueError: no row fits, or a prompt that `encode_prompts` refuses.
    """
    prompts = encode_prompts(rows.select_columns(["prompt"]), tokenizer, max_length=1 << 30)
    encoded = []
    for prompt, completion in zip(prompts, rows["completion"], strict=True):
        # The policy of RL writes the space itself; word-level tokenizers drop it.
        gap = " " if isinstance(prompt.text, str) and not prompt.text[-1:].isspace() else ""
        tokens = tokenizer(gap + completion, add_special_tokens=False).input_ids
        tokens = [*tokens, tokenizer.eos_token_id]
        ids = [*prompt.token_ids, *tokens]
        if len(ids) <= max_length:
            encoded.append({"input_ids": ids, "labels": [-100] * len(prompt.token_ids) + tokens})
    if not encoded:
        raise ValueError(f"sft_max_length={max_length}: every one of the {len(rows)} traces is longer; raise it")
    return Dataset.from_list(encoded), len(rows) - len(encoded)


# ------------------------------------------------------------------------------------------------------ the layouts


def _read_row(row: dict[str, Any], name: str, index: int) -> tuple[str | list[dict], str | None]:
    """Prompt (text or messages) and completion."""
    chat = next((row[column] for column in CHAT_COLUMNS if column in row), None)
    if chat is not None:
        return _read_chat(chat, row.get("system"), f"dataset {name!r}, row {index}")
    if "prompt" in row and "completion" in row:
        return row["prompt"], completion_text(row["completion"] or "")
    problem = next((row[column] for column in PROBLEM_COLUMNS if column in row), None)
    if isinstance(problem, str) and row.get("generations") is not None:
        return problem, next(_right_generations(row), None)
    if isinstance(problem, str) and row.get("solution") is not None and row.get("answer") is not None:
        return problem, f"<think> {row['solution']} </think> <answer> {row['answer']} </answer>"
    raise LoadingError(
        f"dataset {name!r}, row {index}: cannot tell prompt from completion in the columns {', '.join(row)}; use "
        "messages, or prompt and completion, or problem with generations (or with solution and answer)"
    )


def _read_chat(turns: list[dict], system: str | None, where: str) -> tuple[list[dict], str | None]:
    messages = [_to_message(turn, where) for turn in turns]
    if system and not any(message["role"] == "system" for message in messages):
        messages.insert(0, {"role": "system", "content": system})
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    if not last:
        return messages, None
    return messages[:last], messages[last]["content"]


def _to_message(turn: dict, where: str) -> dict:
    role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not isinstance(content, str):
        raise LoadingError(f"{where}: a turn without role and content: {str(turn)[:80]}")
    return {"role": ROLES.get(role, role), "content": content}


def _right_generations(row: dict[str, Any]) -> Iterator[str]:
    generations = row["generations"]
    flags = next((row[column] for column in CORRECTNESS_COLUMNS if row.get(column)), None) or [True] * len(generations)
    yield from (text for text, is_right in zip(generations, flags, strict=False) if is_right and text)


def _bare_problem(prompt: str | list[dict]) -> str | list[dict]:
    """A lone user turn as text, which then gets the template; longer conversations and system prompts stay."""
    is_lone = isinstance(prompt, list) and len(prompt) == 1 and prompt[0]["role"] == "user"
    return prompt[0]["content"] if is_lone else prompt
