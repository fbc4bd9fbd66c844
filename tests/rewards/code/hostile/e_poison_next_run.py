# mode: script
# must not: leave something that a later program imports or reads
import os
import sys
for directory in ("..", "../..", "/tmp", "/dev/shm", *sys.path):
    for name in ("random.py", "sitecustomize.py", "hostile_probe_marker"):
        try:
            with open(os.path.join(directory, name), "w") as file:
                file.write("print('PWNED: poisoned')")
            print("PWNED: wrote", directory, name)
        except OSError:
            pass
