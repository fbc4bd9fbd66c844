# mode: script
# must not: loosen the rules it runs under
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

for option, value in ((22, 0), (22, 1), (4, 1), (38, 0), (1, 0), (36, 1)):
    if libc.prctl(option, value, 0, 0, 0) == 0:
        print("PWNED: prctl", option)
for number in (317, 444, 446):
    if libc.syscall(number, 0, 0, 0) >= 0:
        print("PWNED: system call", number)
