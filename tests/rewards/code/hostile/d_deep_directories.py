# mode: script
# must not: make a tree too deep to delete
import os
for _ in range(3000):
    os.mkdir("d")
    os.chdir("d")
open("leaf", "w").close()
print(0)
