# mode: script
# must not: crash or hang by source that is too much for the compiler
for source in ("(" * 100_000, "-" * 1_000_000 + "1", "[" * 90 + "1 << (1 << 40)" + "]" * 90):
    try:
        exec(source)
    except (MemoryError, RecursionError, SyntaxError, OverflowError):
        pass
print(0)
