# mode: function
# must not: flood the channel by one endless line
import os
def solve(n):
    while True:
        os.write(3, b"x" * 65536)
