# mode: script
# must not: run on after its end
import threading
def stay():
    while True:
        pass
threading.Thread(target=stay).start()
print(0)
