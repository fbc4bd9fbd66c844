# mode: script
# must not: score by repeating its input
print(input())
