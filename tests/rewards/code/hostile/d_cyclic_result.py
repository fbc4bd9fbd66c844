# mode: function
# must not: hang the encoding of its result
def solve(n):
    value = [n]
    value.append(value)
    return value
