# mode: script
# must not: move or remove the directory that it was given
import os
for attempt in (
    lambda: os.rename("../run", "../other"),
    lambda: os.rename("..", "../../other"),
    lambda: os.rmdir("../.."),
    lambda: os.mkdir("../../hostile_probe_marker"),
):
    try:
        attempt()
    except OSError:
        pass
print(0)
