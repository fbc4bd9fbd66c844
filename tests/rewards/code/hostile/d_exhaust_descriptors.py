# mode: script
# must not: open more files than its limit
files = []
try:
    for i in range(10_000):
        files.append(open("f", "w"))
    print("PWNED: 10000 descriptors")
except OSError:
    print(0)
