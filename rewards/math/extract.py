"""Find the final answer in a completion. Linear scans; nothing is ever guessed from "the last number"."""

import re
from collections.abc import Callable

from rewards.text import answer_block, final_section, is_blank

_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]*")
_BETWEEN_BOXES = re.compile(r"[\s,;$]*(?:(?:and|or)[\s,;$]*)?")
_BARE_BOX = re.compile(r"[^\s{}$\\]+")

PLACEHOLDERS = frozenset({"answer", "...", "your answer", "final answer"})
"""What a prompt writes inside a box to show the format; repeating it is no answer."""


def extract_answer(text: str, mode: str = "auto") -> str | None:
    """The final answer of a completion, stripped, or None when it gives none (or gives several).

    "answer_tag": the inside of the one `<answer>...</answer>`. "boxed": the inside of the last `\\boxed{}`, braces
    matched; boxes separated only by commas, "and" or "or" are one list. "gsm8k": the rest of the line after the last
    `####`. "auto": the first of these three that the text attempts; a box inside the answer tag is opened.
    Only what follows `</think>` counts. Raises ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; use one of {', '.join(MODES)}")
    answer = MODES[mode](text)
    if answer is None or is_blank(answer) or answer.strip().lower() in PLACEHOLDERS:
        return None
    return answer.strip()


def _auto(text: str) -> str | None:
    if "<answer>" in text or "</answer>" in text:
        answer = answer_block(text)
        return last_box(answer) if answer and _BOX.search(answer) else answer
    section = final_section(text)
    if section is None:
        return None
    return last_box(section) if _BOX.search(section) else after_hashes(section)


def _boxed(text: str) -> str | None:
    section = final_section(text)
    return None if section is None else last_box(section)


def _gsm8k(text: str) -> str | None:
    section = final_section(text)
    return None if section is None else after_hashes(section)


MODES: dict[str, Callable[[str], str | None]] = {
    "auto": _auto,
    "answer_tag": answer_block,
    "boxed": _boxed,
    "gsm8k": _gsm8k,
}


def after_hashes(text: str) -> str | None:
    """GSM8K's convention: what stands after the last `####`, up to the end of the line."""
    _, hashes, rest = text.rpartition("####")
    return rest.lstrip(" \t").partition("\n")[0] if hashes else None


def last_box(text: str) -> str | None:
    """The inside of the last `\\boxed{...}` (or `\\fbox{...}`, `\\boxed 5`); neighbouring boxes joined by ", ".

    Of nested boxes the innermost counts. None when there is no box or the last one is not closed.
    """
    starts = [match.span() for match in _BOX.finditer(text)]
    contents: list[str] = []
    following = len(text)
    for start, opening in reversed(starts):
        content, end = _read_box(text, opening, following)
        if content is None and not contents:
            return None
        if content is None or (contents and not _BETWEEN_BOXES.fullmatch(text, end, following)):
            break
        contents.append(content)
        following = start
    return ", ".join(reversed(contents)) if contents else None


def _read_box(text: str, opening: int, limit: int) -> tuple[str | None, int]:
    """(content, end) of a box whose argument starts at `opening`, not read beyond `limit` where the next one starts."""
    if text[opening : opening + 1] != "{":
        bare = _BARE_BOX.match(text, opening, limit)
        return (bare.group(), bare.end()) if bare else (None, opening)
    depth = 0
    for position in range(opening, limit):
        # An escaped brace is a character of the answer: \boxed{\{1, 2\}}.
        if text[position] in "{}" and text[position - 1] != "\\":
            depth += 1 if text[position] == "{" else -1
            if depth == 0:
                return text[opening + 1 : position], position + 1
    return None, limit
