"""From a fork of the fork server to a process that can only compute and use its own directory."""

import os
import platform
import random
import resource
import sys
from dataclasses import dataclass

from . import landlock, privileges, seccomp
from .limits import MIB, Limits

READABLE_SYSTEM_PATHS = (
    "/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache",
    "/usr/share/zoneinfo", "/etc/localtime", "/dev/null", "/dev/urandom", "/dev/random", "/dev/zero",
)  # fmt: skip
"""Shared libraries that standard modules load late, time zones, and what the C library opens."""


@dataclass(frozen=True)
class Lock:
    """What this kernel offers, prepared once by the fork server and applied by each of its forks."""

    landlock_abi: int
    ruleset: int | None
    """Descriptor of the Landlock rules; they allow the fork server's own directory."""
    filter: bytes | None
    """The seccomp program, for a process yet unknown."""
    uid: int | None
    """User to become. One for each fork server, which runs one process at a time."""
    counts_threads: bool
    """RLIMIT_NPROC counts the threads of the locked process and nobody else's."""

    @classmethod
    def prepare(cls, directory: str, use_kernel: bool) -> "Lock":
        """use_kernel False leaves Landlock and seccomp out (the plain backend)."""
        is_root = os.geteuid() == 0
        has_namespace = not is_root and privileges.enter_user_namespace()
        abi = landlock.abi_version() if use_kernel else 0
        # The standard library is all that sys.path holds here; nothing of the user's.
        readable = (*sys.path, *READABLE_SYSTEM_PATHS)
        ruleset = landlock.build_ruleset(readable, [directory, "/dev/null"], abi) if abi else None
        uid = _own_uid(directory) if is_root and ruleset is not None else None
        program = seccomp.build_filter(platform.machine()) if use_kernel and seccomp.is_supported() else None
        return cls(abi, ruleset, program, uid, uid is not None or has_namespace)

    def apply(self, limits: Limits, parent: int) -> None:
        """Applies all of it to this process and closes every descriptor above 3.

        Raises OSError if something that the kernel offers is refused now.
        """
        _set_limits(limits, self.counts_threads)
        if platform.system() == "Linux":
            if self.uid is not None:
                privileges.take_uid(self.uid)
            elif platform.machine() in privileges.CAPSET:
                privileges.keep_capabilities(0)
            privileges.die_with_parent(parent)  # After the change of user, which clears it.
            privileges.forbid_new_privileges()
        if self.ruleset is not None:
            landlock.restrict_self(self.ruleset)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        if self.filter is not None:
            seccomp.install_filter(seccomp.for_process(self.filter, os.getpid()))


def _own_uid(directory: str) -> int | None:
    """A user for the locked processes, made the owner of their directory. None where root may not do that."""
    uid = random.SystemRandom().choice(privileges.SANDBOX_UIDS)
    try:
        os.chown(directory, uid, uid)
    except OSError:
        return None
    return uid if platform.machine() in privileges.CAPSET else None


def _set_limits(limits: Limits, limit_threads: bool) -> None:
    wanted = {
        "RLIMIT_CPU": int(limits.wall_s) + 1,
        "RLIMIT_AS": limits.memory_bytes,
        "RLIMIT_FSIZE": limits.file_bytes,
        "RLIMIT_NOFILE": limits.open_files,
        "RLIMIT_STACK": 64 * MIB,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }
    if limit_threads:
        wanted["RLIMIT_NPROC"] = limits.threads
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue  # Not on this system.
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):
            if sys.platform == "linux":
                raise  # macOS refuses some, such as the size of the address space.
