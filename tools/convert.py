"""Hugging Face folder <-> NeMo/Megatron checkpoint.

usage: python tools/convert.py import HF_FOLDER CHECKPOINT
       python tools/convert.py export CHECKPOINT HF_FOLDER
"""

from solopo_nemo.model.convert import main

if __name__ == "__main__":
    main()
