"""The seccomp filter as the kernel would run it, for both architectures, and the clean-up of directories."""

import os
import struct

import pytest

from rewards.code.jail import seccomp
from rewards.code.jail.cleanup import empty_directory, remove_tree, usage
from rewards.code.jail.syscalls import ARCHITECTURES, FILTERED_TABLE, REFUSED_TABLE, syscall_numbers

PID = 4321
ALLOWED = {
    "x86_64": {"read": 0, "write": 1, "mmap": 9, "brk": 12, "socketpair": 53, "exit_group": 231, "futex": 202},
    "aarch64": {"read": 63, "write": 64, "mmap": 222, "brk": 214, "socketpair": 199, "exit_group": 94, "futex": 98},
}


def verdict(machine, number, *arguments, arch=None):
    """Interprets the filter on one system call (linux/filter.h): "allow", "kill" or the name of an errno."""
    program = seccomp.for_process(seccomp.build_filter(machine), PID)
    data = struct.pack("=IIQ6Q", number, arch or ARCHITECTURES[machine][0], 0, *(*arguments, *[0] * 6)[:6])
    operations = list(struct.iter_unpack("HBBI", program))
    at = accumulator = 0
    while True:
        code, if_true, if_false, value = operations[at]
        at += 1
        if code == seccomp.LOAD:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif code == seccomp.AND:
            accumulator &= value
        elif code == seccomp.JUMP_ALWAYS:
            at += value
        elif code == seccomp.JUMP_EQUAL:
            at += if_true if accumulator == value else if_false
        elif code == seccomp.JUMP_GREATER:
            at += if_true if accumulator > value else if_false
        elif code == seccomp.RETURN:
            names = {seccomp.ALLOW: "allow", seccomp.KILL_PROCESS: "kill"}
            return names.get(value) or {1: "EPERM", 38: "ENOSYS"}[value & 0xFFFF]


@pytest.fixture(params=ARCHITECTURES)
def machine(request):
    return request.param


def test_what_computing_needs_is_allowed(machine):
    assert {verdict(machine, number) for number in ALLOWED[machine].values()} == {"allow"}


def test_every_refused_call_is_refused(machine):
    numbers = syscall_numbers(REFUSED_TABLE, machine)
    assert len(numbers) > 100 and len(set(numbers.values())) == len(numbers)
    assert {name for name, number in numbers.items() if verdict(machine, number) != "EPERM"} == set()


def test_other_numberings_are_refused(machine):
    assert verdict(machine, 1, arch=0x40000003) == "kill"
    assert verdict(machine, 0x40000000 + 39) == "ENOSYS"
    assert verdict(machine, 9999) == "ENOSYS"


def test_threads_but_no_processes(machine):
    clone = syscall_numbers(FILTERED_TABLE, machine)["clone"]
    assert verdict(machine, clone, 0x3D0F00) == "allow"  # What the C library passes for a thread.
    assert verdict(machine, clone, 17) == "EPERM"
    assert verdict(machine, clone, 0x3D0F00 | 0x10000000) == "EPERM"
    assert verdict(machine, 435) == "ENOSYS"


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("tgkill", (PID, PID, 6), "allow"),
        ("tgkill", (1, 1, 9), "EPERM"),
        ("prlimit64", (0, 7, 0, 1), "allow"),
        ("prlimit64", (0, 7, 0x1000, 0), "EPERM"),
        ("prlimit64", (0, 7, 0x1000_0000_0000, 0), "EPERM"),
        ("fcntl", (0, 3), "allow"),
        ("fcntl", (0, 8, 1), "EPERM"),
        ("fcntl", (0, 10, 9), "EPERM"),
        ("ioctl", (0, 0x5413), "allow"),
        ("ioctl", (0, 0x5412), "EPERM"),
        ("openat", (0, 0, 0o1001), "allow"),
        ("openat", (0, 0, 0o1000), "EPERM"),
        ("openat2", (), "ENOSYS"),
    ],
)
def test_calls_judged_by_their_arguments(machine, name, arguments, expected):
    assert verdict(machine, syscall_numbers(FILTERED_TABLE, machine)[name], *arguments) == expected


def test_empty_directory(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    run = tmp_path / "run"
    (run / "a" / "b").mkdir(parents=True)
    (run / "a" / "file").write_text("x")
    (run / "link").symlink_to(outside)
    (run / "a" / "dangling").symlink_to("nowhere")
    os.mkfifo(run / "pipe")
    os.chmod(run / "a", 0)
    empty_directory(str(run))
    assert os.listdir(run) == [] and (outside / "kept").read_text() == "kept"
    remove_tree(str(run))
    remove_tree(str(run))
    assert not run.exists()


def test_a_tree_deeper_than_any_path(tmp_path):
    top = os.open(tmp_path, os.O_RDONLY)
    current = top
    name = "d" * 200
    for _ in range(40):
        os.mkdir(name, dir_fd=current)
        current, previous = os.open(name, os.O_RDONLY, dir_fd=current), current
        if previous != top:
            os.close(previous)
    os.close(current)
    os.close(top)
    assert usage(str(tmp_path), 10_000)[1] > 10_000  # Too long to look at counts as full.
    empty_directory(str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_usage(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_bytes(bytes(100_000))
    size, count = usage(str(tmp_path), 100)
    assert 100_000 <= size < 200_000 and count == 2
    assert usage(str(tmp_path), 1)[1] > 1
    assert usage(str(tmp_path / "missing"), 1) == (0, 0)
