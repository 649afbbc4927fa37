"""Evaluate a model on the paper's suites, or put evaluated models side by side.

Scores, answers and a page with tables, curves and heat maps go to --out; the same command goes on where it was stopped.

  python tools/evaluate.py --model outputs/solo_dpo/hf --suite builtin
  python tools/evaluate.py --model Qwen2.5-7B-Instruct --suite ruler_qa,longbench_qa --data evaluation_data
  python tools/evaluate.py --compare outputs/evaluation/base outputs/evaluation/solo --out outputs/comparison
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

from rich.console import Console

from solopo_nemo.evaluation.measured import Measured
from solopo_nemo.evaluation.models import ModelSettings
from solopo_nemo.evaluation.report import write_report
from solopo_nemo.evaluation.run import evaluate
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites import SUITES, find_suites
from solopo_nemo.evaluation.tables import as_json, measured_suites, suite_table, unlike_names
from solopo_nemo.families.hf import is_checkpoint
from solopo_nemo.runtime.cli import ArgumentParser, run
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.units import token_count
from solopo_nemo.training.checkpoints.files import check_origin


def main() -> int:
    """Run the command."""
    logging.basicConfig(format="%(message)s")
    arguments = _parser().parse_args()
    if arguments.compare:
        if arguments.model or arguments.suite:
            raise UserError("--compare: takes folders that were evaluated; leave --model and --suite out")
        models = [Measured.read(folder) for folder in arguments.compare]
        out = arguments.out or Path("outputs/comparison")
    else:
        if not arguments.model or not arguments.suite:
            raise UserError("--model and --suite are needed (or --compare with evaluated folders)")
        out = arguments.out or Path("outputs/evaluation") / Path(arguments.model).resolve().name
        if is_checkpoint(Path(arguments.model)):
            vouch = "tools/convert.py export --trust-checkpoint makes a Hugging Face folder of it"
            check_origin(Path(arguments.model), "--model", False, vouch)
        models = [evaluate(_model(arguments), find_suites(arguments.suite), _settings(arguments), out)]
    page = write_report(models, out / "report")
    console, names = Console(stderr=True), unlike_names(models)
    for suite, views in measured_suites(models):
        console.print(suite_table(suite, views, names).terminal())
    console.print(f"report: {page}", highlight=False)
    if arguments.json:
        print(json.dumps(as_json(models)))
    return 0


def _model(arguments: argparse.Namespace) -> ModelSettings:
    return ModelSettings(
        arguments.model,
        arguments.base_url,
        arguments.tokenizer,
        arguments.window,
        arguments.yarn,
        arguments.concurrency,
    )


def _settings(arguments: argparse.Namespace) -> SuiteSettings:
    given = {name: getattr(arguments, name) for name in ("lengths", "depths", "seeds")}
    chosen = {name: value for name, value in given.items() if value is not None}
    return SuiteSettings(arguments.data, limit=arguments.limit, max_new_tokens=arguments.max_new_tokens, **chosen)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(token_count(part.strip()) for part in text.split(","))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_argument_group("what")
    model = "Hugging Face folder, a checkpoint of a run (its weights and context folders), or a server's model name"
    what.add_argument("--model", metavar="MODEL", help=model)
    what.add_argument("--suite", metavar="NAME[,NAME]", help=f"of {', '.join(SUITES)}")
    compare = "put folders that were evaluated side by side; differences are to the first"
    what.add_argument("--compare", type=Path, nargs="+", metavar="FOLDER", help=compare)
    out = "folder to write (default outputs/evaluation/NAME, or outputs/comparison)"
    what.add_argument("--out", type=Path, metavar="FOLDER", help=out)

    how = parser.add_argument_group("how")
    data = "folder of the data, SUITE/DATASET.jsonl (default evaluation_data); what is not there comes from the hub"
    how.add_argument("--data", type=Path, default=Path("evaluation_data"), metavar="FOLDER", help=data)
    lengths = "prompt lengths of ruler_qa and niah_plus, answer included (default 4K,8K,16K,32K; to 1M and beyond)"
    how.add_argument("--lengths", type=_counts, metavar="N,N", help=lengths)
    depths = "where niah_plus puts the needle, in percent (default 0,25,50,75,100)"
    how.add_argument("--depths", type=_numbers, metavar="P,P", help=depths)
    how.add_argument("--limit", type=int, metavar="N", help="questions a cell (default: the suite's own number)")
    how.add_argument("--seeds", type=_numbers, metavar="N,N", help="of longbench_v2, which samples (default 0,1,2)")
    how.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer (default: the suite's own)")
    yarn = "extend the model's window F times by YaRN"
    how.add_argument("--yarn", type=float, metavar="F", help=yarn)

    server = parser.add_argument_group("with a server; the key is taken from OPENAI_API_KEY")
    server.add_argument("--base-url", metavar="URL", help="OpenAI-compatible, such as http://127.0.0.1:8000/v1")
    tokenizer = "folder of the server's tokenizer, for suites that count tokens"
    server.add_argument("--tokenizer", type=Path, metavar="FOLDER", help=tokenizer)
    server.add_argument("--window", type=int, metavar="N", help="longest sequence that the server takes, in tokens")
    server.add_argument("--concurrency", type=int, default=16, metavar="N", help="prompts at once (default 16)")

    parser.add_argument("--json", action="store_true", help="print the summary as the last line of stdout, as JSON")
    return parser


if __name__ == "__main__":
    run(main)
