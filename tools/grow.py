"""``solopo grow``."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run the package of this checkout
    from solopo_nemo.commands import main

    main("grow")
