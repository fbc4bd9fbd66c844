"""Landlock: a process gives up the file system except named directories (linux/landlock.h)."""

import ctypes
import fcntl
import os
import platform
from collections.abc import Iterable

from .libc import checked, libc

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # The same on every architecture.
VERSION_FLAG, RULE_PATH_BENEATH = 1, 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
FIRST_ABI_RIGHTS = (1 << 13) - 1
REFER, TRUNCATE, DEVICE_IOCTL = 1 << 13, 1 << 14, 1 << 15
READ = READ_FILE | READ_DIR
READ_WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | REFER | TRUNCATE
ON_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
TCP_BIND_AND_CONNECT = 0b11
ABSTRACT_SOCKETS_AND_SIGNALS = 0b11


class _RulesetAttribute(ctypes.Structure):
    _fields_ = [("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scoped", ctypes.c_uint64)]


class _PathBeneathAttribute(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("descriptor", ctypes.c_int32)]


def abi_version() -> int:
    """The kernel's Landlock version; 0 where there is none."""
    if platform.system() != "Linux":
        return 0
    return max(0, libc.syscall(CREATE_RULESET, None, 0, VERSION_FLAG))


def build_ruleset(readable: Iterable[str], writable: Iterable[str], abi: int) -> int:
    """A descriptor (of 10 or more) of rules that refuse every file but what lies beneath the given paths.

    Network and signals to other processes are refused where the ABI can. Missing paths are skipped. Raises OSError.
    """
    handled = _handled_rights(abi)
    network = TCP_BIND_AND_CONNECT if abi >= 4 else 0
    attribute = _RulesetAttribute(handled, network, ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8  # Older kernels reject fields that they do not know.
    ruleset = checked(libc.syscall(CREATE_RULESET, ctypes.byref(attribute), size, 0), "landlock_create_ruleset")
    for rights, paths in ((READ, readable), (READ_WRITE, writable)):
        for path in paths:
            _allow_beneath(ruleset, path, rights & handled)
    high = fcntl.fcntl(ruleset, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(ruleset)
    return high


def restrict_self(ruleset: int) -> None:
    """Puts the calling thread, which needs no_new_privs, under the rules for good. Raises OSError."""
    checked(libc.syscall(RESTRICT_SELF, ruleset, 0), "landlock_restrict_self")


def _allow_beneath(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= ON_FILES
        rule = _PathBeneathAttribute(rights, descriptor)
        checked(libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, ctypes.byref(rule), 0), "landlock_add_rule")
    finally:
        os.close(descriptor)


def _handled_rights(abi: int) -> int:
    """Every right that this version of the kernel can refuse."""
    added = {2: REFER, 3: TRUNCATE, 5: DEVICE_IOCTL}
    return FIRST_ABI_RIGHTS | sum(right for version, right in added.items() if abi >= version)
