# mode: script
# must not: score by output before a crash
print(int(input()) ** 2 + 1)
raise RuntimeError
