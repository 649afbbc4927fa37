"""Convert a model between a Hugging Face folder and a NeMo checkpoint: Qwen2, Qwen2.5, Qwen3, Llama 2 and 3.x, Mistral.

Each conversion ends with a comparison of logits, in fp32, with transformers: on random tokens and on text, as a part of
the largest logit. Above 1e-4 it fails and leaves nothing. A conversion that is there already is not made again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rich.console import Console

from solopo_nemo.nemo_model.convert import export_hf, import_hf
from solopo_nemo.runtime.cli import ArgumentParser, run
from solopo_nemo.training.checkpoints.files import check_origin


def main() -> None:
    """Run the command."""
    arguments = vars(_parser().parse_args())
    direction, as_json = arguments.pop("direction"), arguments.pop("json")
    if direction == "export":
        check_origin(arguments["checkpoint"], "CHECKPOINT", arguments.pop("trust_checkpoint"), "--trust-checkpoint")
    done = {"import": import_hf, "export": export_hf}[direction](**arguments)
    Console(stderr=True).print(
        "{destination}: {parameters:,} parameters, {dtype}, {family}, window {window:,} tokens; ".format_map(done)
        + "logits differ by {random:.1e} on random tokens, {text:.1e} on text".format_map(done["logits_difference"]),
        highlight=False,
        soft_wrap=True,
    )
    if as_json:
        print(json.dumps(done))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    common = ArgumentParser(add_help=False)
    trust = "run Python code that the model's folder brings; off unless given"
    common.add_argument("--trust-remote-code", action="store_true", help=trust)
    overwrite = "replace another conversion in the destination; a folder of anything else is never touched"
    common.add_argument("--overwrite", action="store_true", help=overwrite)
    common.add_argument("--json", action="store_true", help="print the summary as the last line of stdout, as JSON")

    commands = parser.add_subparsers(dest="direction", required=True, metavar="import|export")
    text = "Hugging Face folder -> NeMo checkpoint, loadable at any TP, PP, CP and DP"
    inward = commands.add_parser("import", parents=[common], help=text, description=text)
    inward.add_argument("source", type=Path, metavar="HF_FOLDER", help="config.json, tokenizer, safetensors")
    inward.add_argument("destination", type=Path, metavar="CHECKPOINT", help="folder to make")
    scaling = 'other rope scaling, as JSON: \'{"rope_type": "yarn", "factor": 4.0}\''
    inward.add_argument("--rope-scaling", type=_json, metavar="JSON", help=scaling)

    text = "NeMo checkpoint, of any layout -> Hugging Face folder, in the type of the model's original files"
    outward = commands.add_parser("export", parents=[common], help=text, description=text)
    outward.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder with weights, context and hf")
    outward.add_argument("destination", type=Path, metavar="HF_FOLDER", help="folder to make")
    vouch = "load a checkpoint that this tool did not write: loading one runs any code that its files name"
    outward.add_argument("--trust-checkpoint", action="store_true", help=vouch)
    size = "largest safetensors file, as in transformers (default 5GB)"
    outward.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help=size)
    return parser


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise argparse.ArgumentTypeError(f"not JSON ({error})") from None


if __name__ == "__main__":
    run(main)
