"""Executes the notebooks in place: `python notebooks/execute.py [NOTEBOOK ...]`, by default all of them.

The kernel runs in this folder, finds r1lab beside it, and draws no progress bars; what would differ from one execution
to the next without meaning anything (cell timings, how output was cut in pieces, the interpreter's version) is left out
of the file.
"""

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

__all__ = ["HERE", "CellExecutionError", "execute", "main"]

HERE = Path(__file__).resolve().parent
TIMEOUT_S = 600
"""Of one cell, on a machine that is busy with something else; alone, a notebook takes under two minutes."""


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh outputs.

    Raises:
        CellExecutionError: a cell raised; the message holds its traceback.
        CellTimeoutError: a cell ran longer than `TIMEOUT_S`.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=TIMEOUT_S,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
    )
    client.execute(env=_environment())
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return notebook


def _environment() -> dict[str, str]:
    python_path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {
        **os.environ,
        "PYTHONPATH": python_path,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm asks for widgets that no bar will use
    }


def main(names: list[str]) -> None:
    for path in [Path(name) for name in names] or sorted(HERE.glob("*.ipynb")):
        nbformat.write(execute(path), path)
        print(path.name)


if __name__ == "__main__":
    main(sys.argv[1:])
