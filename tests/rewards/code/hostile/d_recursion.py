# mode: function
# must not: take the interpreter down by deep recursion
import sys
sys.setrecursionlimit(10**9)
def solve(n):
    return [solve(n)] + sorted([n], key=lambda x: solve(x))
