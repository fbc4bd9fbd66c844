"""The C library, loaded once so that forks share the work."""

import ctypes

libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """The result of a system call; OSError with errno when it failed."""
    if result < 0:
        raise OSError(ctypes.get_errno(), what)
    return result
