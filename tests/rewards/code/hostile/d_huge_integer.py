# mode: function
# must not: stall the conversion of an integer to text
def solve(n):
    return 1 << (1 << 24)
