# mode: script
# must not: offer a service to the network
import socket
for family, address in ((socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_UNIX, "\0mark"), (socket.AF_UNIX, "mark")):
    try:
        socket.socket(family).bind(address)
        print("PWNED: bound", address)
    except OSError:
        pass
