"""python -m rewards score FILE --reward NAME ...
python -m rewards explain GOLD ANSWER"""

import sys

from rewards.cli import main

if __name__ == "__main__":
    sys.exit(main())
