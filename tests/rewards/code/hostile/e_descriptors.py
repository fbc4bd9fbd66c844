# mode: script
# must not: find descriptors of the fork server
import os
import socket
for descriptor in range(4, 1024):
    try:
        os.fstat(descriptor)
        print("PWNED: descriptor", descriptor)
    except OSError:
        pass
