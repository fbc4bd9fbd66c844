# mode: function
# must not: run longer than its limit inside C code
import re
def solve(n):
    return bool(re.match(r"(a+)+$", "a" * 64 + "b"))
