"""Numbers of the system calls that a candidate program is refused, on x86-64 and on aarch64.

A candidate computes, allocates, starts threads and uses files of its own directory: none of these calls is needed for
that. They are grouped by what they could do to the rest of the machine. Numbers are the kernel's ABI
(arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h); 0 means that the architecture lacks the
call, and `read` (0 on x86-64) is not in the table.
"""

REFUSED_TABLE = """
network            socket 41 198, connect 42 203, bind 49 200, listen 50 201, accept 43 202, accept4 288 242
new programs       execve 59 221, execveat 322 281, fork 57 0, vfork 58 0
other processes    kill 62 129, tkill 200 130, rt_sigqueueinfo 129 138, rt_tgsigqueueinfo 297 240, pidfd_open 434 434
other processes    pidfd_send_signal 424 424, pidfd_getfd 438 438, process_madvise 440 440, process_mrelease 448 448
other processes    ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271, kcmp 312 272
other processes    move_pages 279 239, migrate_pages 256 238, get_robust_list 274 100, setpgid 109 154, setsid 112 157
priorities         sched_setaffinity 203 122, sched_setparam 142 118, sched_setscheduler 144 119, sched_setattr 314 274
priorities         setpriority 141 140, ioprio_set 251 30, setrlimit 160 164
mounts             mount 165 40, umount2 166 39, chroot 161 51, pivot_root 155 41, unshare 272 97, setns 308 268
mounts             open_tree 428 428, move_mount 429 429, fsopen 430 430, fsconfig 431 431, fsmount 432 432
mounts             fspick 433 433, mount_setattr 442 442, swapon 167 224, swapoff 168 225, quotactl 179 60
mounts             quotactl_fd 443 443, sync 162 81, syncfs 306 267, acct 163 89
kernel interfaces  bpf 321 280, perf_event_open 298 241, io_uring_setup 425 425, io_uring_enter 426 426
kernel interfaces  io_uring_register 427 427, userfaultfd 323 282, fanotify_init 300 262, lookup_dcookie 212 18
kernel interfaces  add_key 248 217, request_key 249 218, keyctl 250 219, syslog 103 116, nfsservctl 180 42
kernel interfaces  uselib 134 0, iopl 172 0, ioperm 173 0, modify_ldt 154 0, personality 135 92
shared memory      memfd_create 319 279, memfd_secret 447 447, shmget 29 194, shmat 30 196, shmctl 31 195
shared memory      semget 64 190, semop 65 193, semctl 66 191, semtimedop 220 192
shared memory      msgget 68 186, msgsnd 69 189, msgrcv 70 188, msgctl 71 187, mq_open 240 180, mq_unlink 241 181
the machine        init_module 175 105, finit_module 313 273, delete_module 176 106, create_module 174 0
the machine        kexec_load 246 104, kexec_file_load 320 294, reboot 169 142, settimeofday 164 170
the machine        clock_settime 227 112, clock_adjtime 305 266, adjtimex 159 171
the machine        sethostname 170 161, setdomainname 171 162, vhangup 153 58
privileges         setuid 105 146, setgid 106 144, setreuid 113 145, setregid 114 143, setresuid 117 147
privileges         setresgid 119 149, setgroups 116 159, setfsuid 122 151, setfsgid 123 152, capset 126 91
privileges         prctl 157 167, seccomp 317 277
privileges         landlock_create_ruleset 444 444, landlock_add_rule 445 445, landlock_restrict_self 446 446
links, handles     mknod 133 0, mknodat 259 33, link 86 0, linkat 265 37, symlink 88 0, symlinkat 266 36
links, handles     name_to_handle_at 303 264, open_by_handle_at 304 265
file metadata      truncate 76 45, chmod 90 0, fchmod 91 52, fchmodat 268 53, chown 92 0, fchown 93 55, lchown 94 0
file metadata      fchownat 260 54, utime 132 0, utimes 235 0, futimesat 261 0, utimensat 280 88
file metadata      setxattr 188 5, lsetxattr 189 6, fsetxattr 190 7, removexattr 197 14, lremovexattr 198 15
file metadata      fremovexattr 199 16
"""

# These are tested on their arguments, or answered "not implemented" so that callers fall back to an older call.
FILTERED_TABLE = """
filtered           clone 56 220, clone3 435 435, tgkill 234 131, prlimit64 302 261, fcntl 72 25, ioctl 16 29
filtered           open 2 0, openat 257 56, openat2 437 437
"""

LAST_KNOWN = 451
"""Later calls (kernel 6.6 and newer) are unknown to this table and answered "not implemented"; both machines agree."""

ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine name -> (AUDIT_ARCH constant of linux/audit.h, column of the tables)."""


def syscall_numbers(table: str, machine: str) -> dict[str, int]:
    """Name -> number of the calls in a table that the machine has."""
    column = ARCHITECTURES[machine][1]
    entries = [entry.split() for line in table.strip().splitlines() for entry in line[19:].split(",")]
    return {name: int(numbers[column]) for name, *numbers in entries if int(numbers[column])}
