# mode: function
# must not: take anything down with it
import os
def solve(n):
    os.abort()
