"""The program inside a completion."""

import re

from rewards.text import answer_block, final_section

FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([^\s`]*)[^\n]*$", re.MULTILINE)
PYTHON_NAMES = ("", "python", "python3", "py")


def extract_code(completion: str, entry_point: str | None = None) -> str | None:
    """The program that a completion offers: its last Python block between code fences, in the answer tags where there
    is one pair of them, else after the thinking.

    With entry_point, the last block that defines that function, if one does: an example of its use may follow it. A
    block that is cut off at the end of the text counts. Text without any fence is a program itself. None when the
    thinking does not end, when it ends more than once, or when there are only blocks in other languages.
    """
    section = answer_block(completion)
    if section is None:
        section = final_section(completion)
    if section is None:
        return None
    blocks = code_blocks(section)
    if not blocks:
        return section
    programs = [code for language, code in blocks if language.lower() in PYTHON_NAMES]
    if entry_point is not None:
        defining = [code for code in programs if defines(code, entry_point)]
        programs = defining or programs
    return programs[-1] if programs else None


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    blocks = []
    opening = None
    for fence in FENCE.finditer(text):
        if opening is None:
            opening = fence
        elif fence[1].startswith(opening[1]) and not fence[2]:
            blocks.append((opening[2], text[opening.end() + 1 : fence.start()]))
            opening = None
    if opening is not None:
        blocks.append((opening[2], text[opening.end() + 1 :]))
    return blocks


def defines(code: str, entry_point: str) -> bool:
    """Whether a source seems to define a name (of "Solution().f": the class) at its top level."""
    name = re.escape(re.split(r"[.(]", entry_point)[0])
    return re.search(rf"^(?:(?:async\s+)?def|class)\s+{name}\b|^{name}\s*=", code, re.MULTILINE) is not None
