# mode: script
# must not: reach rarely used kernel interfaces
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

page = ctypes.create_string_buffer(4096)
# bpf, perf_event_open, userfaultfd, io_uring_setup, keyctl, fanotify_init, syslog (numbers of x86-64)
for number in (321, 298, 323, 425, 250, 300, 103):
    if libc.syscall(number, 0, page, 64, 0, 0) >= 0:
        print("PWNED: system call", number)
