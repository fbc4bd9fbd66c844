"""A seccomp filter that refuses what could reach beyond the process (linux/seccomp.h, linux/filter.h)."""

import ctypes
import errno
import platform
import struct

from .libc import checked, libc
from .syscalls import ARCHITECTURES, FILTERED_TABLE, LAST_KNOWN, REFUSED_TABLE, syscall_numbers

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
OPERATION_SIZE = 8
LOAD, JUMP_ALWAYS, JUMP_EQUAL, JUMP_GREATER, AND, RETURN = 0x20, 0x05, 0x15, 0x25, 0x54, 0x06
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_OFFSET, ARCH_OFFSET, ARGUMENTS_OFFSET = 0, 4, 16
REFUSE = ERRNO | errno.EPERM
NOT_IMPLEMENTED = ERRNO | errno.ENOSYS

UNKNOWN_PID = 0x7FFFFFFF
"""Stands for the process in a program built before it exists; no process has this id."""

CLONE_THREAD = 0x00010000
CLONE_NEW_NAMESPACE = 0x7E020000
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
TIOCSTI, FIOSETOWN, SIOCSPGRP = 0x5412, 0x8901, 0x8902
O_ACCMODE, O_TRUNC = 0o3, 0o1000


def is_supported() -> bool:
    return platform.system() == "Linux" and platform.machine() in ARCHITECTURES and struct.calcsize("P") == 8


def build_filter(machine: str) -> bytes:
    """The BPF program: struct sock_filter after struct sock_filter. `for_process` completes it."""
    filtered = syscall_numbers(FILTERED_TABLE, machine)
    program = [
        _op(LOAD, ARCH_OFFSET),
        _op(JUMP_EQUAL, ARCHITECTURES[machine][0], 1, 0),
        _op(RETURN, KILL_PROCESS),  # 32-bit calls have other numbers.
        _op(LOAD, NUMBER_OFFSET),
        _op(JUMP_GREATER, LAST_KNOWN, 0, 1),
        _op(RETURN, NOT_IMPLEMENTED),  # x32 calls too: their numbers have bit 30 set.
    ]
    refused = list(syscall_numbers(REFUSED_TABLE, machine).values())
    # Each test jumps over those that remain to the common refusal.
    program += [_op(JUMP_EQUAL, number, len(refused) - i, 0) for i, number in enumerate(refused)]
    program += [_op(JUMP_ALWAYS, 1), _op(RETURN, REFUSE)]
    for name in ("clone3", "openat2"):  # Their arguments lie in memory, where a filter cannot look.
        program += [_op(JUMP_EQUAL, filtered[name], 0, 1), _op(RETURN, NOT_IMPLEMENTED)]
    for name, tests in _argument_tests().items():
        if name in filtered:
            block = [operation for test in tests for operation in test] + [_op(RETURN, ALLOW)]
            program += [_op(JUMP_EQUAL, filtered[name], 0, len(block)), *block]
    return b"".join([*program, _op(RETURN, ALLOW)])


def for_process(program: bytes, pid: int) -> bytes:
    """The program for the process with this id, which may signal itself."""
    return program.replace(_op(JUMP_EQUAL, UNKNOWN_PID, 1, 0), _op(JUMP_EQUAL, pid, 1, 0))


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("operations", ctypes.c_char_p)]


def install_filter(program: bytes) -> None:
    """Puts the calling thread, and every thread it starts, under the filter for good. Raises OSError."""
    argument = ctypes.byref(_Program(len(program) // OPERATION_SIZE, program))
    checked(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, argument, 0, 0), "seccomp")


def _argument_tests() -> dict[str, list[list[bytes]]]:
    return {
        # Threads only.
        "clone": [_refuse_if(0, CLONE_THREAD, 0), *(_refuse_if(0, bit, bit) for bit in _bits(CLONE_NEW_NAMESPACE))],
        # abort() and pthread_kill() signal the own process.
        "tgkill": [_refuse_unless(0, UNKNOWN_PID)],
        # Reading limits is fine. The pointer to new ones has two halves.
        "prlimit64": [_refuse_unless(2, 0), _refuse_unless(2, 0, high=True)],
        # The owner of a descriptor gets signals by the kernel's hand; F_SETSIG chooses which.
        "fcntl": [_refuse_if(1, 0xFFFFFFFF, command) for command in (F_SETOWN, F_SETSIG, F_SETOWN_EX)],
        "ioctl": [_refuse_if(1, 0xFFFFFFFF, command) for command in (TIOCSTI, FIOSETOWN, SIOCSPGRP)],
        # Landlock before ABI 3 lets a file that is opened for reading be truncated.
        "open": [_refuse_if(1, O_TRUNC | O_ACCMODE, O_TRUNC)],
        "openat": [_refuse_if(2, O_TRUNC | O_ACCMODE, O_TRUNC)],
    }


def _refuse_if(argument: int, mask: int, value: int) -> list[bytes]:
    load = _op(LOAD, ARGUMENTS_OFFSET + 8 * argument)
    return [load, _op(AND, mask), _op(JUMP_EQUAL, value, 0, 1), _op(RETURN, REFUSE)]


def _refuse_unless(argument: int, value: int, high: bool = False) -> list[bytes]:
    load = _op(LOAD, ARGUMENTS_OFFSET + 8 * argument + (4 if high else 0))
    return [load, _op(JUMP_EQUAL, value, 1, 0), _op(RETURN, REFUSE)]


def _bits(mask: int) -> list[int]:
    return [1 << shift for shift in range(32) if mask >> shift & 1]


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)
