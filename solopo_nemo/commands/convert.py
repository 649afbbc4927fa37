"""Convert a model between a Hugging Face folder and a NeMo checkpoint: Qwen2, Qwen3, Llama, Mistral, Gemma 3 and more.

Each conversion ends with a comparison of logits with transformers in fp32, on random tokens and on text. If the
difference exceeds 1e-4 of the largest logit, the conversion fails and leaves no files. A finished conversion is not
repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from solopo_nemo.runtime.cli import ArgumentParser, json_object, show_json


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    parsed = _parser().parse_args(arguments)
    given = {name: value for name, value in vars(parsed).items() if name not in ("direction", "json")}
    from rich.console import Console

    from solopo_nemo.nemo_model.convert import export_hf, import_hf
    from solopo_nemo.training.checkpoints.files import check_origin

    if parsed.direction == "export":
        check_origin(parsed.checkpoint, "CHECKPOINT", given.pop("trust_checkpoint"), "--trust-checkpoint")
        done = export_hf(**given)
    else:
        done = import_hf(**given)
    Console(stderr=True, markup=False).print(
        "{destination}: {parameters:,} parameters, {dtype}, {family}, window {window:,} tokens; ".format_map(done)
        + "logits differ by {random:.1e} on random tokens, {text:.1e} on text".format_map(done["logits_difference"]),
        highlight=False,
        soft_wrap=True,
    )
    show_json(parsed, done)


def _parser() -> ArgumentParser:
    parser, common = ArgumentParser(__doc__), ArgumentParser(add_help=False)
    common.options()("--trust-remote-code", "run Python code that the model's folder contains")
    overwrite = "replace another conversion in the destination; any other folder is never replaced"
    common.options()("--overwrite", overwrite)
    common.add_json()

    commands = parser.add_subparsers(dest="direction", required=True, metavar="import|export")
    text = "Hugging Face folder -> NeMo checkpoint that loads at any parallel layout"
    inward = commands.add_parser("import", parents=[common], help=text, description=text)
    inward.add_argument("source", type=Path, metavar="HF_FOLDER", help="config.json, tokenizer, safetensors")
    inward.add_argument("destination", type=Path, metavar="CHECKPOINT", help="folder to write")
    scaling = 'replaces the model\'s rope scaling, as in \'{"rope_type": "yarn", "factor": 4.0}\''
    inward.options()("--rope-scaling JSON", scaling, type=json_object)

    text = "NeMo checkpoint of any layout -> Hugging Face folder, in the dtype of the model's original files"
    outward = commands.add_parser("export", parents=[common], help=text, description=text)
    outward.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder with weights, context and hf")
    outward.add_argument("destination", type=Path, metavar="HF_FOLDER", help="folder to write")
    vouch = "load a checkpoint that this project did not write; loading runs the code that its files name"
    outward.options()("--trust-checkpoint", vouch)
    outward.options()("--max-shard-size SIZE", "largest safetensors file, as in transformers", "5GB")
    return parser
