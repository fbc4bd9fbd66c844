# mode: script
# must not: fill the disk with files that are each within their limit
for i in range(40):
    with open(f"part{i}", "wb") as file:
        file.write(bytes(15 << 20))
import time
time.sleep(0.3)
print("PWNED: 600 MiB on disk")
