# mode: function
# must not: hang by a stopped process
import signal
def solve(n):
    signal.raise_signal(signal.SIGSTOP)
