# mode: script
# must not: open files by handle, past the rules on paths
import ctypes
libc = ctypes.CDLL(None, use_errno=True)

handle = ctypes.create_string_buffer(b"\x80\0\0\0" + bytes(132), 136)
mount = ctypes.c_int()
if libc.name_to_handle_at(-100, b"/etc/passwd", handle, ctypes.byref(mount), 0) == 0:
    print("PWNED: a handle")
if libc.open_by_handle_at(0, handle, 0) >= 0:
    print("PWNED: opened by handle")
