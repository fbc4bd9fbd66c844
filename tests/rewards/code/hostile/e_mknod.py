# mode: script
# must not: make a device node
import os
import stat
for kind in (stat.S_IFBLK | 0o600, stat.S_IFCHR | 0o600, stat.S_IFIFO | 0o600):
    try:
        os.mknod("node", kind, os.makedev(1, 1))
        print("PWNED: node", kind)
    except OSError:
        pass
