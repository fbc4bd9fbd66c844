# mode: function
# must not: score by a value that leaves the comparison to the other side
def solve(n):
    return NotImplemented
