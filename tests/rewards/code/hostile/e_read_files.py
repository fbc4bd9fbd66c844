# mode: script
# must not: read what belongs to the user or the system
import glob
import os
import sys
places = ["/etc/passwd", "/etc/shadow", "/etc/hostname", "/proc/self/environ", "/proc/1/environ", "/proc/meminfo"]
places += glob.glob(os.path.expanduser("~root/.*")) + glob.glob("/home/*/.bashrc") + glob.glob("/tmp/*")
for path in places:
    try:
        open(path, "rb").read(1)
        print("PWNED: read", path)
    except OSError:
        pass
for directory in ("/", "/root", "/home", "/tmp", "/proc", "/etc", "/var", ".."):
    try:
        if os.listdir(directory) not in ([], ["run"]):
            print("PWNED: listed", directory)
    except OSError:
        pass
