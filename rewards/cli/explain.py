"""`explain GOLD ANSWER`: what was extracted, how both were read, which rule decided."""

import argparse
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rewards.math.extract import MODES, extract_answer
from rewards.math.numbers import parse_number
from rewards.math.verdict import TIMEOUT_S, check, gold_answer

_MARKS = ("\\boxed", "\\fbox", "<answer>", "</think>", "####")


def add_explain(commands: Any) -> None:
    parser = commands.add_parser(
        "explain", help="show why an answer does or does not equal the gold", allow_abbrev=False
    )
    parser.add_argument("gold", metavar="GOLD", help="bare answer, or a solution with \\boxed{} or ####")
    parser.add_argument("answer", metavar="ANSWER", help="bare answer, or a whole completion")
    parser.add_argument("--mode", default="auto", choices=MODES, help="where a completion's answer is; default: auto")
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, metavar="S", help="seconds; default: %(default)s")
    parser.set_defaults(run=run_explain)


def run_explain(options: argparse.Namespace) -> int:
    """Prints the explanation; 0 when the answer is right, 1 when it is not."""
    # Without any mark of a completion the text is the answer itself, where extraction would find none.
    is_bare = options.mode == "auto" and not any(mark in options.answer for mark in _MARKS)
    answer = options.answer if is_bare else extract_answer(options.answer, options.mode)
    gold = gold_answer(options.gold)
    verdict = check(options.gold, answer, timeout_s=options.timeout)
    table = Table(show_header=True)
    for heading in ("", "gold", "answer"):
        table.add_column(heading, overflow="fold")
    rows = [
        ("given", options.gold, options.answer),
        ("extracted", gold, answer),
        ("parsed", verdict.gold or _number(gold), verdict.answer or _number(answer)),
    ]
    for name, *cells in rows:
        table.add_row(name, *(Text("-" if cell is None else str(cell)) for cell in cells))
    console = Console()
    console.print(table)
    console.print(Text(f"{verdict.reason}, decided by: {verdict.rule}"))
    return 0 if verdict.equal else 1


def _number(text: str | None) -> Any:
    """The exact value that decides between plain numbers, which are not parsed further."""
    return None if text is None else parse_number(text)
