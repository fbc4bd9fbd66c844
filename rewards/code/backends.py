"""How a fork server is started: bare, or inside bubblewrap."""

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

PACKAGE_DIRECTORY = Path(__file__).parent / "jail"
START = "import sys; sys.path.insert(0, sys.argv.pop()); from jail.zygote import main; sys.path.pop(0); main()"

# Everything a fork server's interpreter sees. The fixed hash seed makes a program's score repeatable.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Backend:
    """A way to isolate. `is_locked` adds Landlock and seccomp to every process, where the kernel has them."""

    name: str
    is_locked: bool
    is_wrapped: bool = False

    def missing(self) -> str | None:
        """Why it cannot even be tried on this system, or None."""
        if self.is_locked and sys.platform != "linux":
            return "needs Linux"
        if self.is_wrapped and shutil.which("bwrap") is None:
            return "there is no bwrap on PATH"
        return None

    def command(self, control: int, directory: str) -> list[str]:
        """The command line of a fork server that is reached by descriptor and gives programs this directory."""
        python = interpreter()
        arguments = [str(control), directory, "locked" if self.is_locked else "plain", str(PACKAGE_DIRECTORY.parent)]
        server = [python, "-P", "-s", "-S", "-B", "-c", START, *arguments]
        return [*_bubblewrap(python, directory), *server] if self.is_wrapped else server


INNER_DIRECTORY = "/run/program"
"""Where programs work under bubblewrap: a file system in memory that nobody else sees."""

BACKENDS = {
    backend.name: backend
    for backend in (
        Backend("bwrap", is_locked=True, is_wrapped=True),
        Backend("landlock", is_locked=True),
        Backend("plain", is_locked=False),
    )
}
"""Best first."""


def interpreter() -> str:
    """The interpreter itself: a virtual environment's link would need the environment to be readable."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _bubblewrap(python: str, directory: str) -> list[str]:
    """bwrap with nothing but the interpreter in view, no network, and a small file system in memory to write to."""
    program = shutil.which("bwrap")
    options = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() == 0:
        options += ["--cap-add", "ALL"]  # The fork server gives them up for each process, and cleans up with them.
    else:
        options += ["--unshare-user"]
    readable = ["/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/usr/share/zoneinfo", "/etc/ld.so.cache"]
    readable += ["/etc/localtime", str(Path(python).parent), sysconfig.get_config_var("LIBDIR")]
    readable += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(PACKAGE_DIRECTORY)]
    for path in dict.fromkeys(path for path in readable if path):
        options += ["--ro-bind-try", path, path]
    return [program, *options, "--dev", "/dev", "--size", str(256 << 20), "--tmpfs", directory, "--new-session", "--"]
