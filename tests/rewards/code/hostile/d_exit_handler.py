# mode: script
# must not: run on after its end
import atexit
@atexit.register
def stay():
    while True:
        pass
print(0)
