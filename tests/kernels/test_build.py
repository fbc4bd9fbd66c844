"""Building, caching and falling back, each in a process of its own: the library is loaded once per process."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from r1lab.kernels import build

ROOT = Path(__file__).parents[2]
LOAD_TWICE = "from r1lab.kernels import build; build.load_extension(); print(build.load_extension())"
needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("c++")), reason="no compiler here")


@pytest.fixture(scope="module")
def small_package(tmp_path_factory):
    """The kernels with one C++ file each process can build in a second: the real build.py over rms_norm alone."""
    root = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "r1lab" / "kernels", root / "r1lab" / "kernels")
    for source in (root / "r1lab" / "kernels" / "cpu").glob("*.cpp"):
        if source.stem not in ("rms_norm", "build_key"):
            source.unlink()
    return root


def start(code, package, cache, **environment):
    # C locale and no inherited settings: only what the test says.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("R1LAB_", "CXX"))}
    kept |= {"PYTHONPATH": str(package), "R1LAB_CACHE": str(cache), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=package, env=kept, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def run(code, package, cache, **environment):
    process = start(code, package, cache, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out.strip(), err


@needs_compiler
def test_builds_once_says_so_once_and_repairs_a_damaged_file(small_package, tmp_path):
    code, out, err = run(LOAD_TWICE, small_package, tmp_path)
    assert (code, out) == (0, "True") and err.count("r1lab: building CPU kernels with") == 1, err
    (library,) = tmp_path.glob("*.so")
    assert str(library) in err

    assert run(LOAD_TWICE, small_package, tmp_path) == (0, "True", "")

    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) // 2])  # as a full disk leaves it
    code, out, err = run(LOAD_TWICE, small_package, tmp_path)
    assert (code, out) == (0, "True") and err.count("building") == 1, err
    assert len(library.read_bytes()) == len(whole)
    assert not list(tmp_path.glob("build-*"))


@needs_compiler
def test_two_processes_build_once(small_package, tmp_path):
    processes = [start(LOAD_TWICE, small_package, tmp_path) for _ in range(2)]
    results = [process.communicate(timeout=120) for process in processes]
    assert [out.strip() for out, _ in results] == ["True", "True"], results
    assert sum(err.count("building") for _, err in results) == 1, results


@pytest.mark.parametrize("environment", [{"PATH": ""}, {"CXX": "/nowhere/g++"}], ids=["empty PATH", "missing CXX"])
def test_without_compiler_one_warning_and_the_reference(small_package, tmp_path, environment):
    code, out, err = run(LOAD_TWICE, small_package, tmp_path, **environment)
    assert (code, out) == (0, "False") and err.count("CPU kernels not built") == 1, err


def test_ops_work_without_compiler(small_package, tmp_path):
    code = """
import torch
from r1lab.kernels import ops
print(ops.rms_norm(torch.full((2, 16), 3.0), torch.ones(16), 1e-6).sum().round().item())
"""
    status, out, err = run(code, small_package, tmp_path, CXX="/nowhere/g++")
    assert (status, out) == (0, "32.0") and err.count("CPU kernels not built") == 1, err


@needs_compiler
def test_compiler_that_fails_is_a_warning_with_its_message(small_package, tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'fatal error: no backend' >&2\nexit 1\n")
    compiler.chmod(0o755)
    code, out, err = run(LOAD_TWICE, small_package, tmp_path, CXX=str(compiler))
    assert (code, out) == (0, "False") and err.count("CPU kernels not built") == 1 and "no backend" in err, err


@needs_compiler
def test_compiler_without_march_native_builds_portable_code(small_package, tmp_path):
    compiler = tmp_path / "old"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *-march=native*) echo "error: unknown" >&2; exit 1;; esac\nexec g++ "$@"\n'
    )
    compiler.chmod(0o755)
    code, out, err = run(LOAD_TWICE, small_package, tmp_path, CXX=str(compiler))
    assert (code, out) == (0, "True"), err


def test_environment_forces_the_backend(small_package, tmp_path):
    assert run(LOAD_TWICE, small_package, tmp_path, R1LAB_KERNELS="reference") == (0, "False", "")
    code, _, err = run(LOAD_TWICE, small_package, tmp_path, R1LAB_KERNELS="cpu", PATH="")
    assert code == 1 and "BuildError: no C++ compiler found" in err
    code, _, err = run(LOAD_TWICE, small_package, tmp_path, R1LAB_KERNELS="gpu")
    assert code == 1 and "R1LAB_KERNELS='gpu'" in err


@needs_compiler
def test_stale_library_is_not_loaded(small_package, tmp_path):
    run(LOAD_TWICE, small_package, tmp_path)
    (library,) = tmp_path.glob("*.so")
    key = library.stem.removeprefix("kernels-")
    assert build._load(library, key) is not None
    assert build._load(library, "another key") is None


def test_key_changes_with_the_sources(tmp_path, monkeypatch):
    first = build._build_key(["g++"]) if shutil.which("g++") else None
    if first is None:
        pytest.skip("no g++")
    shutil.copytree(ROOT / "r1lab" / "kernels" / "cpu", tmp_path / "cpu")
    monkeypatch.setattr(build, "_SOURCES", tmp_path / "cpu")
    assert build._build_key(["g++"]) == first
    (tmp_path / "cpu" / "common.h").write_text("// changed\n")
    assert build._build_key(["g++"]) != first
