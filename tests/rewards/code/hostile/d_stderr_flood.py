# mode: script
# must not: fill the trainer through standard error
import sys
while True:
    sys.stderr.write("x" * 65536)
