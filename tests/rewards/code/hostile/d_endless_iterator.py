# mode: function
# must not: hang the encoding of its result
class Endless(list):
    def __iter__(self):
        while True:
            yield 1
    __len__ = lambda self: 10**18
def solve(n):
    return Endless([n])
