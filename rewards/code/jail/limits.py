"""Resource limits of one sandboxed process."""

from dataclasses import dataclass, fields

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """What one process may use. Raises ValueError for a limit that is not positive.

    A count of threads can only be enforced where the process has a user id of its own, see `SandboxReport`.
    """

    wall_s: float = 4.0
    memory_bytes: int = 1024 * MIB
    output_bytes: int = MIB
    """Of standard output, of standard error and of one returned value, each."""
    file_bytes: int = 16 * MIB
    disk_bytes: int = 64 * MIB
    """Of all files in the working directory together, looked at fifty times a second."""
    disk_files: int = 1024
    open_files: int = 64
    threads: int = 128

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"{field.name}={value!r}; pass a positive number")
