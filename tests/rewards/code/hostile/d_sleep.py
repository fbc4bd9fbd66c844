# mode: function
# must not: run longer than its limit without using the CPU
import time
def solve(n):
    time.sleep(10**6)
