# mode: script
# must not: make system calls under numbers that the filter might not know
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

X32, GETPID, SOCKET = 0x40000000, 39, 41
for number in (X32 | GETPID, X32 | SOCKET, 600, 1000):
    if libc.syscall(number, 2, 1, 0) >= 0:
        print("PWNED: system call", number)
