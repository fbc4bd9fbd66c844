# mode: function
# must not: take the fork server down
import ctypes
def solve(n):
    return ctypes.string_at(0)
