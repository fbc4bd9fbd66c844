# mode: script
# must not: signal any process but itself
import os
import signal
for pid in (-1, 1, os.getppid(), -os.getpgid(os.getppid()) or -1, 0):
    try:
        os.kill(pid, 0)
        print("PWNED: may signal", pid)
    except OSError:
        pass
try:
    signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)
    print("PWNED: may signal by pidfd")
except OSError:
    pass
