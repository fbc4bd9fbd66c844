# mode: function
# must not: crash the trainer by a message nested deeply
import os
def solve(n):
    for depth in (300, 900, 100_000):
        text = b'{"reply": 1, "value": ' + b"[" * depth + b"]" * depth + b"}\n"
        os.write(3, text)
