# mode: function
# must not: score by a value of another type
def solve(n):
    return str(n * n + 1)
