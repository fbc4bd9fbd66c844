"""Compiles the CPU kernels once and loads them.

All of cpu/*.cpp becomes one shared library with a plain C interface, called through ctypes: no torch headers, so it
builds in seconds and does not depend on the torch version. The library sits in a cache under a key made of sources,
flags, compiler and CPU features; its last 32 bytes are the SHA-256 of what precedes them, so a truncated file is
rebuilt instead of loaded.

Environment: R1LAB_KERNELS=reference|cpu forces a backend, R1LAB_CACHE moves the cache (default ~/.cache/r1lab), CXX
names the compiler.
"""

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_SOURCES = Path(__file__).parent / "cpu"
_FLAGS = ["-std=c++17", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fvisibility=hidden", "-Wno-psabi"]
# Tried in order until one compiles: some compilers lack -march=native for their CPU, some ship without OpenMP.
_OPTIONAL_FLAGS = (["-march=native", "-fopenmp"], ["-fopenmp"], ["-march=native"], [])
_DIGEST_BYTES = 32
_LOCK = threading.Lock()


class BuildError(RuntimeError):
    """The kernels cannot be compiled here; the message says why."""


def load_extension() -> bool:
    """Whether the CPU kernels can be used; compiles and loads them on the first call.

    Without a working compiler: one warning, then False. R1LAB_KERNELS=reference: False, and nothing is compiled.
    Raises BuildError when R1LAB_KERNELS=cpu and they cannot be built, ValueError on another value of R1LAB_KERNELS.
    """
    return extension() is not None


def extension() -> ctypes.CDLL | None:
    """The loaded library, or None where the reference must be used; see load_extension."""
    with _LOCK:
        return _extension()


@functools.cache
def _extension() -> ctypes.CDLL | None:
    choice = os.environ.get("R1LAB_KERNELS", "")
    if choice not in ("", "cpu", "reference"):
        raise ValueError(f"R1LAB_KERNELS={choice!r}: use 'cpu', 'reference', or leave it unset")
    if choice == "reference":
        return None
    try:
        return _load_or_build(_cache_directory())
    except BuildError as error:
        if choice == "cpu":
            raise
        warnings.warn(f"r1lab: CPU kernels not built, using the slower PyTorch reference: {error}", stacklevel=2)
        return None


def _load_or_build(directory: Path) -> ctypes.CDLL:
    compiler = _find_compiler()
    key = _build_key(compiler)
    path = directory / f"kernels-{key}.so"
    library = _load(path, key)
    if library is not None:
        return library
    with _file_lock(directory / f"kernels-{key}.lock"):
        library = _load(path, key)  # another process may have built it meanwhile
        if library is None:
            _build(compiler, key, path)
            library = _load(path, key)
    if library is None:
        raise BuildError(f"{path} was built but does not load")
    return library


def _find_compiler() -> list[str]:
    if sys.platform == "win32":
        raise BuildError("Windows is not supported")
    requested = os.environ.get("CXX")
    candidates = [shlex.split(requested)] if requested else [["g++"], ["c++"], ["clang++"]]
    for command in candidates:
        if command and shutil.which(command[0]):
            return command
    tried = requested or "g++, c++, clang++"
    raise BuildError(f"no C++ compiler found (tried {tried}); install g++ or set CXX")


def _build_key(compiler: list[str]) -> str:
    digest = hashlib.sha256()
    for source in sorted([*_SOURCES.glob("*.cpp"), *_SOURCES.glob("*.h")]):
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    setting = (_FLAGS, _OPTIONAL_FLAGS, compiler, shutil.which(compiler[0]), platform.machine())
    digest.update(repr(setting).encode() + _cpu_features().encode())
    return digest.hexdigest()[:20]


def _cpu_features() -> str:
    # A cache on a shared home directory meets several kinds of machine, and -march=native code of one crashes another.
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as cpuinfo:
        for line in cpuinfo:
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()


def _cache_directory() -> Path:
    directory = Path(os.environ.get("R1LAB_CACHE") or Path.home() / ".cache" / "r1lab")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            return directory
    except OSError:
        # Read-only home: build for this process alone.
        return Path(tempfile.mkdtemp(prefix="r1lab-"))


@contextlib.contextmanager
def _file_lock(path: Path):
    import fcntl  # not on Windows

    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # released by the kernel if this process dies
        yield


def _build(compiler: list[str], key: str, path: Path) -> None:
    print(f"r1lab: building CPU kernels with {' '.join(compiler)} ...", end="", file=sys.stderr, flush=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="build-") as folder:
        unfinished = Path(folder) / "kernels.so"
        try:
            _compile(compiler, [f'-DR1LAB_BUILD_KEY="{key}"'], unfinished)
        except BuildError:
            print(" failed", file=sys.stderr)
            raise
        content = unfinished.read_bytes()
        unfinished.write_bytes(content + hashlib.sha256(content).digest())
        os.replace(unfinished, path)
    seconds = time.perf_counter() - start
    print(f" {seconds:.1f} s, cached in {path}", file=sys.stderr)


def _compile(compiler: list[str], defines: list[str], output: Path) -> None:
    for optional in _OPTIONAL_FLAGS:
        command = [*compiler, *_FLAGS, *optional, *defines]
        error = _compile_and_link(command, output)
        if error is None:
            return
    first_error = next((line for line in error.splitlines() if "error" in line), error[:300])
    raise BuildError(f"{' '.join(compiler)} failed: {first_error}")


def _compile_and_link(command: list[str], output: Path) -> str | None:
    """Compiles the files side by side, then links them. Returns None, or what the compiler said."""

    def run(*arguments: str) -> subprocess.CompletedProcess:
        try:
            return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
        except OSError as error:
            raise BuildError(f"cannot run {command[0]}: {error}") from error

    sources = sorted(_SOURCES.glob("*.cpp"))
    objects = [str(output.with_name(f"{source.stem}.o")) for source in sources]
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        results = list(pool.map(lambda source, target: run("-c", str(source), "-o", target), sources, objects))
    if all(result.returncode == 0 for result in results):
        results = [run("-shared", *objects, "-o", str(output))]
    return next((result.stderr for result in results if result.returncode), None)


def _load(path: Path, key: str) -> ctypes.CDLL | None:
    """The library at `path`, or None when it is missing, damaged, or not the one `key` names."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if hashlib.sha256(content[:-_DIGEST_BYTES]).digest() != content[-_DIGEST_BYTES:]:
        return None
    try:
        library = ctypes.CDLL(str(path))
        library.r1lab_build_key.restype = ctypes.c_char_p
        return library if library.r1lab_build_key().decode() == key else None
    except (OSError, AttributeError):  # not loadable here, or without the function
        return None
