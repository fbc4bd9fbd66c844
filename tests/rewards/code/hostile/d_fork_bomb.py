# mode: script
# must not: start processes without end (here: at most 200)
import os
import time
children = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        children += 1
    except OSError:
        pass
if children:
    print("PWNED: processes", children)
