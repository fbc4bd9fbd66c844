# mode: function
# must not: use more memory than its limit
def solve(n):
    return len("x" * (1 << 36))
