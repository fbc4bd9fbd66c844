"""python -m r1lab.trace report RUN: look at a run's completions in a browser."""

import argparse
import sys
from collections.abc import Sequence

from r1lab.trace.report import write_report
from r1lab.trace.report.html import MAX_MB


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m r1lab.trace", description="Look at what a run left behind.")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser(
        "report", help="write a run's report: curves and completions in one HTML file, without network"
    )
    report.add_argument("run", metavar="RUN", help="the run directory; a run that is still going on works too")
    report.add_argument("--out", metavar="FILE", help="where to write (default: RUN/report.html)")
    report.add_argument(
        "--max-mb",
        type=float,
        default=MAX_MB,
        metavar="MB",
        help="size at most (default: %(default)g); of a run that does not fit, groups are left out evenly",
    )
    report.add_argument(
        "--tokenizer", metavar="PATH", help="tokenizer.json or its directory (default: the newest checkpoint's)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 with the reason on standard error."""
    options = build_parser().parse_args(arguments)
    try:
        path = write_report(
            options.run, options.out, max_mb=options.max_mb, tokenizer=options.tokenizer, show_progress=True
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB): open it in a browser")
    return 0


if __name__ == "__main__":
    sys.exit(main())
