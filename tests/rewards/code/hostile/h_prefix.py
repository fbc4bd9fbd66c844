# mode: script
# must not: score by a part of the expected output
print(str(int(input()) ** 2 + 1)[:1])
