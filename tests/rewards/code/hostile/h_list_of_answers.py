# mode: script
# must not: score by printing every answer
n = int(input())
for value in range(n * n + 100):
    print(value)
