# mode: script
# must not: touch the scheduling of another process
import os
for pid in (os.getppid(), 1):
    for attempt in (
        lambda: os.sched_setaffinity(pid, os.sched_getaffinity(0)),
        lambda: os.setpriority(os.PRIO_PROCESS, pid, 5),
    ):
        try:
            attempt()
            print("PWNED: scheduling of", pid)
        except OSError:
            pass
