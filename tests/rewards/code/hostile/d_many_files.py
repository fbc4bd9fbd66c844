# mode: script
# must not: use up the file system by many empty files
for i in range(50_000):
    open(f"f{i}", "w").close()
import time
time.sleep(0.3)
print("PWNED: 50000 files")
