# mode: script
# must not: read or write the memory of another process
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

import os
for pid in (os.getppid(), 1):
    for name in ("mem", "environ", "maps", "cmdline", "fd/0", "root/etc/passwd"):
        try:
            open(f"/proc/{pid}/{name}", "rb").read(1)
            print("PWNED: read", pid, name)
        except OSError:
            pass
    if libc.ptrace(16, pid, 0, 0) == 0:
        print("PWNED: attached to", pid)
    page = ctypes.create_string_buffer(64)
    vector = (ctypes.c_uint64 * 2)(ctypes.addressof(page), 64)
    if libc.process_vm_readv(pid, vector, 1, vector, 1, 0) >= 0:
        print("PWNED: read the memory of", pid)
