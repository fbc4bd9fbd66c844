"""Find the final answer in a completion. Linear scans; "the last number" only for those who ask for it."""

import re
from collections.abc import Callable

from rewards.text import answer_block, final_section, is_blank

_BOX = re.compile(r"\\(?:boxed|fbox)[ \t]*")
_MARKUP = r"[\s,;$.&*~]|\\[()\[\],;! ]|\\q?quad"
_BETWEEN_BOXES = re.compile(rf"(?:{_MARKUP})*(?:(?:\\text\{{ *)?(?:and|or)(?: *\}})?(?:{_MARKUP})*)?")
_NAME = re.compile(r"[A-Za-z](?:_\{?[A-Za-z0-9]{1,3}\}?)?(?:\([a-z]\))? *= *$")
_BARE_BOX = re.compile(r"[^\s{}$\\]+")
_MAX_BETWEEN = 60

_PHRASE = re.compile(r"(?:final answer|answer|ans)(?: is| :|:| =)[ :]*", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)|\n")
_CHOICE = re.compile(r"(?:\\[a-z]+\s*\{\s*)*\(?([A-Ja-j])\)?(?:\s*\})*[.:]?", re.ASCII)
_CHOICE_WITH_TEXT = re.compile(r"(?:\\[a-z]+\s*\{\s*)?(?:\(([A-J])\)|([A-J])[).])[\s}~\\]+(.*)", re.DOTALL)
_LAST_NUMBER = re.compile(r"(?<![A-Za-z0-9_.,])-?\$?[0-9]+(?:,[0-9]+)*(?:\.[0-9]+)?(?:/[0-9]+)?(?: ?\\?%)?|-?\.[0-9]+")
_TAIL = 500
"""Characters at the end of a text in which a last number is looked for."""

PLACEHOLDERS = frozenset({"answer", "...", r"\ldots", r"\dots", "your answer", "final answer", "your answer here"})
"""What a prompt writes inside a box to show the format; repeating it is no answer."""


def extract_answer(text: str, mode: str = "auto") -> str | None:
    """The final answer of a completion, stripped, or None when it gives none (or gives several).

    "answer_tag": the inside of the one `<answer>...</answer>`. "boxed": the inside of the last `\\boxed{}`, braces
    matched; boxes separated only by commas, "and" or "or" are one list. "gsm8k": the rest of the line after the last
    `####`. "choice": one letter A to J, in a box, in the answer tag or after "answer is". "auto": the first of
    answer_tag, boxed and gsm8k that the text attempts; a box inside the answer tag is opened.

    Two modes guess, and so belong in evaluations of models that learned no format, never in a reward:
    "last_number": the last number in the text. "lenient": a box, else what follows "the answer is", else the last
    formula or number.

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


def _after_thinking(find: Callable[[str], str | None]) -> Callable[[str], str | None]:
    def extract(text: str) -> str | None:
        section = final_section(text)
        return None if section is None else find(section)

    return extract


def after_hashes(text: str) -> str | None:
    """GSM8K's convention: what stands after the last `####`, up to the end of the line."""
    _, hashes, rest = text.rpartition("####")
    return rest.lstrip(" \t").partition("\n")[0] if hashes else None


# ---- boxes


def last_box(text: str) -> str | None:
    """The inside of the last `\\boxed{...}` (or `\\fbox{...}`, `\\boxed 5`); neighbouring boxes joined by ", ".

    Of nested boxes the innermost counts. None when there is no box, or the last one is not closed or holds nothing.
    """
    starts = [match.span() for match in _BOX.finditer(text)]
    contents: list[str] = []
    following = len(text)
    for start, opening in reversed(starts):
        content, end = _read_box(text, opening, following)
        if not contents and (content is None or is_blank(content)):
            return None
        if content is None or (contents and not _is_joined(text, end, following)):
            break
        contents.append(content)
        following = start
    return ", ".join(reversed(contents)) if contents else None


def _is_joined(text: str, end: int, following: int) -> bool:
    """Whether only punctuation, "and" or "or", and perhaps a name (`, y = `) stand between two boxes."""
    if following - end > _MAX_BETWEEN:
        return False
    between = text[end:following]
    return _BETWEEN_BOXES.fullmatch(_NAME.sub("", between)) is not None


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


# ---- without a format


def _choice(text: str) -> str | None:
    found = _auto(text)
    if found is None:
        section = final_section(text)
        found = None if section is None else (_after_phrase(section) or section)
    return None if found is None else choice_letter(found)


def choice_letter(text: str) -> str | None:
    """The letter of "B", "(b)", "\\text{(B)}", "B." and "(B) 42"; None for two letters or anything else."""
    text = text.strip().strip("$").strip()
    if match := _CHOICE.fullmatch(text):
        return match[1].upper()
    if match := _CHOICE_WITH_TEXT.fullmatch(text):
        return None if re.search(r"\b[A-J]\b|\b[a-j]\)", match[3]) else match[1] or match[2]
    return None


def _after_phrase(text: str) -> str | None:
    """The rest of the sentence after the last "answer is"."""
    found = None
    for found in _PHRASE.finditer(text):  # noqa: B007 - the last one
        pass
    if found is None:
        return None
    end = _SENTENCE_END.search(text, found.end())
    return text[found.end() : end.start() if end else len(text)]


def _formulas(text: str) -> list[tuple[int, str]]:
    """(end, inside) of the last `$...$`, the last `\\(...\\)` and the last `\\[...\\]`."""
    found = []
    for opening, closing in (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
        end = text.rfind(closing)
        start = text.rfind(opening, 0, max(end, 0))
        if start >= 0 and not is_blank(text[start + len(opening) : end]):
            found.append((end + len(closing), text[start + len(opening) : end]))
    return found


def _numbers(text: str) -> list[tuple[int, str]]:
    """(end, number) of those near the end."""
    cut = max(0, len(text) - _TAIL)
    return [(match.end(), match[0]) for match in _LAST_NUMBER.finditer(text, cut)]


def _last_number(text: str) -> str | None:
    numbers = _numbers(text)
    return numbers[-1][1] if numbers else None


def _lenient(text: str) -> str | None:
    if _BOX.search(text):
        return last_box(text)
    phrase = _after_phrase(text)
    source = (phrase if phrase and not is_blank(phrase) else text).replace("$$", "$")
    found = _formulas(source) + _numbers(source)
    if found:
        return max(found)[1]
    return phrase


MODES: dict[str, Callable[[str], str | None]] = {
    "auto": _auto,
    "answer_tag": answer_block,
    "boxed": _after_thinking(last_box),
    "gsm8k": _after_thinking(after_hashes),
    "choice": _choice,
    "last_number": _after_thinking(_last_number),
    "lenient": _after_thinking(_lenient),
}
