"""Supervised fine-tuning: SFT-long and Expand-Long-SFT; objective.prompt=short: SFT-short."""

from solopo_nemo.training.launch import main

if __name__ == "__main__":
    main("sft")
