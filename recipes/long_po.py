"""Vanilla preference optimization on the long prompt (Long-PO, Expand-Long-PO); objective.prompt=short: Short-PO."""

from solopo_nemo.training.launch import main

if __name__ == "__main__":
    main("long_po")
