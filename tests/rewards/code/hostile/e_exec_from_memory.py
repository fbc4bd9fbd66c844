# mode: script
# must not: run a program that lies in memory
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

import os
try:
    descriptor = os.memfd_create("program")
    os.write(descriptor, b"#!/bin/sh\necho PWNED: memfd\n")
    os.execve(descriptor, ["program"], {})
except OSError:
    pass
