# mode: function
# must not: use more memory than its limit
def solve(n):
    keep = []
    while len(keep) < 4096:
        keep.append(bytearray(b"x") * (1 << 20))
    print("PWNED: 4 GiB")
