# mode: script
# must not: change the limits of another process
import os
import resource
for pid in (os.getppid(), 1):
    try:
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
        print("PWNED: limits of", pid)
    except (OSError, ValueError):
        pass
