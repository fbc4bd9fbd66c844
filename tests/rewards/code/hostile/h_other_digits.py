# mode: script
# must not: score by digits of another script
n = int(input())
print("".join(chr(0xFF10 + int(digit)) for digit in str(n * n + 1)))
