"""Giving up what root has: capabilities, and the user id itself (linux/prctl.h, linux/capability.h)."""

import ctypes
import os
import platform

from .libc import checked, libc

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 8, 36, 38
CLONE_NEWUSER = 0x10000000
CAP_DAC_READ_SEARCH = 2
CAPABILITY_VERSION_3 = 0x20080522
CAPSET = {"x86_64": 126, "aarch64": 91}

SANDBOX_UIDS = range(61184, 65520)
"""Ids that no account owns: systemd hands these out to services for their lifetime (systemd.io/UIDS-GIDS)."""


def take_uid(uid: int) -> None:
    """From root to a user that owns nothing, so that limits per user count this process alone. Raises OSError.

    The right to read past file permissions is kept, because the interpreter may lie in root's home; call this only
    where Landlock decides what can be read.
    """
    libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    keep_capabilities(1 << CAP_DAC_READ_SEARCH)


def keep_capabilities(mask: int) -> None:
    """Gives up all others; no_new_privs keeps them from coming back."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)  # effective, permitted, inheritable; twice 32 bits
    checked(libc.syscall(CAPSET[platform.machine()], header, data), "capset")


def enter_user_namespace() -> bool:
    """A namespace in which the processes of this user are counted from zero; False where the system refuses."""
    return hasattr(libc, "unshare") and libc.unshare(CLONE_NEWUSER) == 0


def adopt_orphans() -> None:
    """Processes whose parent dies become children of this one, so that they can be found and killed."""
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(parent: int) -> None:
    libc.prctl(PR_SET_PDEATHSIG, 9, 0, 0, 0)
    if os.getppid() != parent:  # It died before the call.
        os._exit(1)


def forbid_new_privileges() -> None:
    """No set-uid program gives this process more rights. Landlock and seccomp require it."""
    checked(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
