# mode: script
# must not: leave shared memory or message queues behind
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

from multiprocessing import shared_memory
IPC_CREAT = 0o1000
if libc.shmget(4242, 4096, IPC_CREAT | 0o666) >= 0:
    print("PWNED: shmget")
if libc.msgget(4242, IPC_CREAT | 0o666) >= 0:
    print("PWNED: msgget")
if libc.semget(4242, 1, IPC_CREAT | 0o666) >= 0:
    print("PWNED: semget")
try:
    shared_memory.SharedMemory("hostile_probe_marker", create=True, size=4096)
    print("PWNED: /dev/shm")
except OSError:
    pass
