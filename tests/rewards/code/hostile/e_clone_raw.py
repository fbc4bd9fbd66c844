# mode: script
# must not: start a process by raw system calls
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

import os
SIGCHLD, SIGKILL = 17, 9
# fork, vfork is left out (it would share this stack), clone with SIGCHLD, clone3 with a zeroed struct
arguments = ctypes.create_string_buffer(88)
for call in ((57,), (56, SIGCHLD, 0, 0, 0, 0), (435, arguments, 88)):
    pid = libc.syscall(*call)
    if pid == 0:
        os._exit(0)
    if pid > 0:
        print("PWNED: process", pid)
