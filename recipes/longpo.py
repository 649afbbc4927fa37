"""LongPO (arXiv 2502.13922)."""

from solopo_nemo.training.launch import main

if __name__ == "__main__":
    main("longpo")
