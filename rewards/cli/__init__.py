"""The command line: score files of completions, explain one verdict."""

import argparse
import sys
from collections.abc import Sequence

from rewards.cli.explain import add_explain
from rewards.cli.score import add_score
from rewards.code import SandboxUnavailable


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; gives the exit status: 2 for bad arguments, files or columns, with one line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m rewards", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_score(commands)
    add_explain(commands)
    options = parser.parse_args(arguments)
    try:
        return options.run(options)
    except (OSError, TypeError, ValueError, SandboxUnavailable) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
