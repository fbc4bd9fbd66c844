# mode: script
# must not: become another user or regain capabilities
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

import os
for attempt in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgid(0), lambda: os.setgroups([0])):
    try:
        attempt()
        print("PWNED: user")
    except OSError:
        pass
header = (ctypes.c_uint32 * 2)(0x20080522, 0)
if libc.capset(header, (ctypes.c_uint32 * 6)(*[0xFFFFFFFF] * 6)) == 0:
    print("PWNED: capabilities")
