# mode: script
# must not: run another program
import os
import subprocess
for attempt in (
    lambda: os.system("true") == 0,
    lambda: subprocess.run(["true"]).returncode == 0,
    lambda: os.posix_spawn("/bin/true", ["true"], {}) > 0,
    lambda: os.popen("echo yes").read() == "yes",
):
    try:
        if attempt():
            print("PWNED: a program ran")
    except OSError:
        pass
try:
    os.execv("/bin/echo", ["echo", "PWNED: exec"])
except OSError:
    pass
