"""Merge a LoRA adapter of peft, or of a run with peft=lora, into the weights of its model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from solopo_nemo.runtime.cli import ArgumentParser


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("model", type=Path, metavar="HF_FOLDER", help="the model that the adapter was trained on")
    parser.add_argument("adapter", type=Path, metavar="ADAPTER", help="adapter_config.json, adapter_model.safetensors")
    parser.add_argument("destination", type=Path, metavar="MERGED", help="Hugging Face folder to write")
    parsed = parser.parse_args(arguments)
    from solopo_nemo.families.adapter import merge_adapter
    from solopo_nemo.nemo_model.convert import staged
    from solopo_nemo.runtime.errors import require

    taken = parsed.destination.exists() and any(parsed.destination.iterdir())
    require(not taken, f"{parsed.destination}: exists and is not empty; name a folder to make")
    size = sum(file.stat().st_size for file in parsed.model.glob("*.safetensors"))
    with staged(parsed.destination, size) as temporary:
        merge_adapter(parsed.model, parsed.adapter, temporary)
    print(parsed.destination)
