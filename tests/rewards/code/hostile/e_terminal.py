# mode: script
# must not: type into the terminal of the user
import fcntl
TIOCSTI = 0x5412
for path in ("/dev/tty", "/dev/console", "/dev/pts/0"):
    try:
        terminal = open(path, "wb")
        print("PWNED: terminal", path)
        fcntl.ioctl(terminal, TIOCSTI, b"x")
    except OSError:
        pass
