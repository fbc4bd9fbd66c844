# mode: script
# must not: get signals delivered to others by the kernel
import fcntl
import os
F_SETSIG, F_SETOWN_EX = 10, 15
for command, value in ((fcntl.F_SETOWN, os.getppid()), (F_SETSIG, 9), (F_SETOWN_EX, bytes(8))):
    try:
        fcntl.fcntl(0, command, value)
        print("PWNED: owner of a descriptor", command)
    except OSError:
        pass
