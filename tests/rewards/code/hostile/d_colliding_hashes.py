# mode: function
# must not: stall the comparison by elements whose hashes are equal
def solve(n):
    return {i * (2**61 - 1) for i in range(1, 3000)}
