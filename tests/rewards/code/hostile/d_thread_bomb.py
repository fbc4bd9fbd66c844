# mode: script
# must not: start threads without end (here: at most 20000)
import _thread
import time
_thread.stack_size(32768)
threads = 0
try:
    for _ in range(20_000):
        _thread.start_new_thread(time.sleep, (20,))
        threads += 1
except RuntimeError:
    pass
if threads > 1000:
    print("PWNED: threads", threads)
