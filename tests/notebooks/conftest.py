"""The notebooks' scripts are scripts, not a package: they become importable here, as when they run."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "notebooks"))
