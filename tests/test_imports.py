"""Data flows one way, and so do imports."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RANKS = [
    {"rewards", "r1lab.kernels", "r1lab.files"},
    {"r1lab.types", "r1lab.config"},
    {"r1lab.model", "r1lab.parallel"},
    {"r1lab.precision"},
    {"r1lab.tasks", "r1lab.rollout", "r1lab.plan"},
    {"r1lab.grpo"},
    {"r1lab.trace", "r1lab.checkpoint", "r1lab.profile"},
    {"r1lab.evaluate", "r1lab.loading"},
    {"r1lab.report", "r1lab.run", "r1lab.demonstrations", "r1lab.reject", "r1lab.stages"},
]
RANK = {name: rank for rank, names in enumerate(RANKS) for name in names}
FORBIDDEN = [("r1lab.rollout", "r1lab.grpo"), ("r1lab.grpo", "r1lab.rollout")]


def _unit(module: str) -> str:
    """The package that a module belongs to in `RANKS`: "rewards", or the first two parts of its name."""
    parts = module.split(".")
    return parts[0] if parts[0] == "rewards" else ".".join(parts[:2])


def _imports():
    for package in ("r1lab", "rewards"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names = [node.module] if node.module != "r1lab" else [f"r1lab.{a.name}" for a in node.names]
                elif isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                else:
                    continue
                for name in names:
                    yield module, name


EDGES = [(a, b) for a, b in _imports() if b.split(".")[0] in ("r1lab", "rewards")]


@pytest.mark.parametrize(("importer", "imported"), EDGES)
def test_no_module_imports_what_comes_after_it(importer, imported):
    if importer == "r1lab":
        return
    source, target = _unit(importer), _unit(imported)
    assert source in RANK and target in RANK, f"give {source} and {target} a place in RANKS"
    assert source == target or RANK[target] <= RANK[source], f"{importer} imports {imported}, which comes after it"
    assert (source, target) not in FORBIDDEN


def test_rewards_stand_alone():
    assert not {b for a, b in _imports() if a.split(".")[0] == "rewards" and b.split(".")[0] in ("r1lab", "torch")}
