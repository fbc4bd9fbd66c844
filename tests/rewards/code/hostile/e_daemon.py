# mode: script
# must not: leave a process behind
import os
import time
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(20)
        os._exit(0)
    print("PWNED: daemon")
except OSError:
    pass
