"""The notebooks run to their end, so that every `assert` in their cells holds, and are committed executed and clean."""

import re
from pathlib import Path

import execute
import nbformat
import pytest

from r1lab.trace import load_run

PATHS = sorted(execute.HERE.glob("*.ipynb"))
MAX_BYTES = 500_000
ABSOLUTE_PATH = re.compile(r"(?<![\w.<])/(?:home|root|tmp|work|usr|Users)/")


def outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(notebook):
    for output in outputs(notebook):
        yield from output.get("data", {}).values()
        yield output.get("text", "")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_runs_to_its_end(path):
    cells = execute.execute(path).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_is_committed_executed_and_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert all(output.get("name") != "stderr" for output in outputs(notebook))
    assert any("image/png" in output.get("data", {}) for output in outputs(notebook))
    assert not [text for text in texts(notebook) if ABSOLUTE_PATH.search(text)]
    assert path.stat().st_size < MAX_BYTES


def test_a_failing_cell_is_an_error(tmp_path):
    path = tmp_path / "wrong.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")]), path)
    with pytest.raises(execute.CellExecutionError):
        execute.execute(path)


def test_the_bundled_run_is_whole_and_small():
    directory = execute.HERE / "pick_two_run"
    run = load_run(directory)
    completions, results = run.completions, run.results
    assert run.notes == [] and set(results["when"]) == {"base", "final", "final_reflection_banned"}
    last = run.metrics["step"].max()
    assert {0, 1, last} < set(completions["step"])
    base, end = (set(completions.loc[completions["step"] == step, "prompt"]) for step in (0, last))
    assert base == end
    sizes = completions.groupby(["step", "group"]).size()
    assert (sizes == run.config["num_generations"]).all()
    assert sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) < 1_500_000


def test_only_what_is_named_is_executed(tmp_path, capsys):
    path = tmp_path / "small.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 + 1")]), path)
    execute.main([str(path)])
    (cell,) = nbformat.read(path, as_version=4).cells
    assert cell.outputs[0].data["text/plain"] == "2" and "execution" not in cell.metadata
    assert capsys.readouterr().out == f"{Path(path).name}\n"
