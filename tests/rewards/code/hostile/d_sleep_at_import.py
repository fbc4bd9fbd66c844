# mode: function
# must not: run longer than its limit before the first call
import time
time.sleep(10**6)
def solve(n):
    return 0
