"""What is right in a completion: strictly, as the reward has it, and format-blind."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from r1lab.types import Completion, Prompt
from rewards.code import extract_code
from rewards.code.tasks import TEST_COLUMNS
from rewards.countdown import check_expression
from rewards.format import format_reward
from rewards.math import extract_answer, verify

RewardFunction = Callable[..., list[float | None]]


@dataclass(slots=True)
class Judged:
    """One completion of an evaluation."""

    text: str
    is_correct: bool
    """By the strict reward: the answer stands where it should and is right."""
    is_correct_blind: bool
    """Format-blind: the last thing offered as an answer, in whatever form, is right."""
    is_well_formed: bool
    """The think and answer template; of a program that stands alone or in a fence: there is one."""
    answer: str | None
    """What votes in maj@k; None: no answer, or a program."""
    num_tokens: int = 0
    is_truncated: bool = False


def find_answer(text: str) -> str | None:
    """The last thing a completion offers as its answer: in answer tags (closed or not), else after 'answer is'."""
    for opening in ("<answer>", "answer is"):
        _, found, rest = text.rpartition(opening)
        if found:
            return re.split(r"<|\n", rest.strip(": \n"), maxsplit=1)[0].rstrip(" .") or None
    return None


def judge_answer(answer: str | None, columns: dict[str, Any]) -> bool:
    """Whether an answer is right, whatever it was written in: by the rules of the numbers game, else by value."""
    if answer is None:
        return False
    if columns.get("numbers") is not None:
        return check_expression(answer, columns["numbers"], columns["target"], columns.get("num_used")) == "correct"
    return verify(columns.get("solution"), answer)


def is_code(columns: dict[str, Any]) -> bool:
    """Whether a problem asks for a program: its row has tests."""
    return any(columns.get(name) is not None for name in TEST_COLUMNS)


def cut_at_stop(text: str, stop_sequences: Sequence[str]) -> tuple[str, bool]:
    """The text up to the first stop sequence in it, and whether there was one (Chen et al., 2021, cut Codex's so)."""
    ends = [position for stop in stop_sequences if (position := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def judge_completions(
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    decode: Callable[[list[int]], str],
    reward: RewardFunction,
) -> list[list[Judged]]:
    """Judges every completion of every prompt; a strict reward of 1 counts as correct.

    Two columns of a prompt are meant for here: `stop_sequences` cut its completions, and `stub` is what the reward
    function receives as the prompt (see `build_human_eval`).
    """
    return [_judge_group(prompt, group, decode, reward) for prompt, group in zip(prompts, completions, strict=True)]


def _judge_group(prompt: Prompt, group: Sequence[Completion], decode, reward: RewardFunction) -> list[Judged]:
    stops = prompt.columns.get("stop_sequences") or []
    cuts = [cut_at_stop(_text(prompt, completion, decode, bool(stops)), stops) for completion in group]
    texts = [text for text, _ in cuts]
    are_correct = _score(texts, prompt, reward)
    if is_code(prompt.columns):
        judged = _judge_programs(texts, are_correct, prompt, reward)
    else:
        judged = [_judge_text(text, right, prompt.columns) for text, right in zip(texts, are_correct, strict=True)]
    for one, completion, (_, has_stopped) in zip(judged, group, cuts, strict=True):
        one.num_tokens = len(completion.token_ids)
        one.is_truncated = completion.finish_reason == "length" and not has_stopped
    return judged


def _score(texts: Sequence[str], prompt: Prompt, reward: RewardFunction) -> list[bool]:
    """Whether the strict reward of each completion is 1."""
    columns = {name: [value] * len(texts) for name, value in prompt.columns.items()}
    stub = prompt.columns.get("stub") or prompt.text
    scores = reward(prompts=[stub] * len(texts), completions=list(texts), completion_ids=None, **columns)
    return [score == 1.0 for score in scores]


def _text(prompt: Prompt, completion: Completion, decode, is_continuation: bool) -> str:
    if not is_continuation:
        return decode(completion.token_ids)
    # Some decoders drop the first white space of what they decode, and a program's indentation begins there.
    return decode([*prompt.token_ids, *completion.token_ids])[len(decode(prompt.token_ids)) :]


def _judge_programs(texts: list[str], are_correct: list[bool], prompt: Prompt, reward: RewardFunction) -> list[Judged]:
    offered = [None if right else find_answer(text) for text, right in zip(texts, are_correct, strict=True)]
    programs = [program for program in offered if program is not None]
    scores = iter(_score(programs, prompt, reward) if programs else ())
    are_blind = [program is not None and next(scores) for program in offered]
    entry_point = prompt.columns.get("entry_point")
    return [
        Judged(text, right, right or blind, _is_well_formed_program(text, entry_point), None)
        for text, right, blind in zip(texts, are_correct, are_blind, strict=True)
    ]


def _is_well_formed_program(text: str, entry_point: str | None) -> bool:
    if "<think>" in text or ("```" not in text and find_answer(text) is not None):
        return format_reward(completions=[text]) == [1.0]
    return extract_code(text, entry_point) is not None


def _judge_text(text: str, is_correct: bool, columns: dict[str, Any]) -> Judged:
    answer = find_answer(text)
    if answer is None and columns.get("numbers") is None:
        answer = extract_answer(text, "lenient")
    is_blind = is_correct or judge_answer(answer, columns)
    return Judged(text, is_correct, is_blind, format_reward(completions=[text]) == [1.0], answer)
