# mode: function
# must not: crash the trainer by a value nested deeply
def solve(n):
    value = n
    for _ in range(100_000):
        value = [value]
    return value
