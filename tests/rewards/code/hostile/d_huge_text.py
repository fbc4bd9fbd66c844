# mode: function
# must not: fill the memory of the trainer by one value
def solve(n):
    return "x" * (200 << 20)
