# mode: script
# must not: reach services of this machine
import socket
for path in ("/var/run/docker.sock", "/run/systemd/private", "/run/dbus/system_bus_socket", "/tmp/.X11-unix/X0"):
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print("PWNED: connected to", path)
    except OSError:
        pass
