# mode: function
# must not: hang where its exception is described
class Loud(Exception):
    def __str__(self):
        while True:
            pass
def solve(n):
    raise Loud
