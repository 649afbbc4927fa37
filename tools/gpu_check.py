"""Check and measure this project on one GPU: studies/gpu_check."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run the packages of this checkout
    from solopo_nemo.commands import main

    main("studies.gpu_check.cli")
