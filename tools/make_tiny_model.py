"""Make the embedded default's tokenizer, starting model and training pairs: studies/make_tiny_model.py."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run the packages of this checkout
    from solopo_nemo.commands import main

    main("studies.make_tiny_model")
