# mode: script
# must not: write a file beyond its limit
with open("big", "wb") as file:
    for _ in range(1024):
        file.write(bytes(1 << 20))
print("PWNED: 1 GiB on disk")
