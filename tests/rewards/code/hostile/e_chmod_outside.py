# mode: script
# must not: change the metadata of files that are not its own
import os
for path in ("/etc/hostname", os.__file__, "/tmp", os.path.expanduser("~/..")):
    for attempt in (
        lambda: os.chmod(path, os.stat(path).st_mode & 0o7777),
        lambda: os.chown(path, os.stat(path).st_uid, -1),
        lambda: os.utime(path),
        lambda: os.setxattr(path, "user.mark", b"1"),
    ):
        try:
            attempt()
            print("PWNED: metadata of", path)
        except OSError:
            pass
