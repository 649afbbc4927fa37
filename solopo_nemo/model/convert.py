"""Hugging Face folder <-> NeMo checkpoint, in a process of its own.

NeMo's importers and exporters set up a one-rank Megatron of their own, which cannot be done inside a
running job; so recipes call this module with ``python -m``. A checkpoint keeps, beside NeMo's
``weights`` and ``context``, an ``hf`` folder with the model's configuration and tokenizer: what is
exported later differs from what was imported by the weights alone.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from solopo_nemo import cli, environment
from solopo_nemo.errors import UserError

TEMPLATE_PATTERNS = ("*.json", "*.jinja", "*.model", "*.txt", "merges*", "vocab*")
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def import_hf(source: Path, destination: Path) -> None:
    """Write a Hugging Face folder as a NeMo checkpoint that loads at any parallel layout.

    Raises:
        UserError: the model family is not supported.
    """
    from transformers import AutoConfig

    from solopo_nemo.model import device

    device.prepare_process()
    from solopo_nemo.model.models import FAMILIES

    kind = AutoConfig.from_pretrained(source).model_type
    if kind not in FAMILIES:
        raise UserError(f"{source}: model_type {kind!r} is not supported; supported are {', '.join(FAMILIES)}")
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    FAMILIES[kind].importer(f"hf://{source.resolve()}").apply(temporary)
    copy_template(source, temporary / "hf")
    shutil.rmtree(destination, ignore_errors=True)
    temporary.rename(destination)


def copy_template(source: Path, destination: Path) -> None:
    """Copy configuration, tokenizer and chat template of a Hugging Face folder, not its weights."""
    destination.mkdir(parents=True, exist_ok=True)
    for pattern in TEMPLATE_PATTERNS:
        for file in source.glob(pattern):
            if file.name not in WEIGHT_INDEXES:
                shutil.copy2(file, destination / file.name)


def export_hf(checkpoint: Path, destination: Path) -> None:
    """Write a NeMo checkpoint as a Hugging Face folder: safetensors, configuration, tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from solopo_nemo.model import device

    device.prepare_process()
    from solopo_nemo.model.models import FAMILIES

    template = checkpoint / "hf"
    hf_config = AutoConfig.from_pretrained(template)
    exporter = FAMILIES[hf_config.model_type].exporter("hf", checkpoint.resolve())
    source, _ = exporter.nemo_load(checkpoint)
    target = AutoModelForCausalLM.from_config(hf_config, torch_dtype=source.config.params_dtype)
    target = exporter.convert_state(source, target)
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    target.cpu().save_pretrained(temporary)
    copy_template(template, temporary)
    shutil.rmtree(destination, ignore_errors=True)
    temporary.rename(destination)


def run_apart(direction: str, source: Path, destination: Path) -> None:
    """Convert in a fresh process, free of this job's ranks.

    Raises:
        UserError: what the conversion refused.
        RuntimeError: it failed; with its messages.
    """
    done = subprocess.run(
        [sys.executable, "-m", "solopo_nemo.model.convert", direction, str(source), str(destination)],
        env=environment.without_ranks(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == cli.EXIT_USER_ERROR:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))
    if done.returncode:
        raise RuntimeError(f"{direction} of {source} failed:\n{done.stderr}")


def main() -> None:
    """``python -m solopo_nemo.model.convert import|export SOURCE DESTINATION``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("direction", choices=("import", "export"))
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    arguments = parser.parse_args()
    convert = {"import": import_hf, "export": export_hf}[arguments.direction]
    cli.run(lambda: convert(arguments.source, arguments.destination))


if __name__ == "__main__":
    main()
