# mode: function
# must not: score by exit status 0
import os
os._exit(0)
