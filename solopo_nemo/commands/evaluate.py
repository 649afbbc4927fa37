"""Evaluate a model on the paper's suites, or compare evaluated models.

Scores, answers and a page with tables, curves and heat maps are written to --out. To resume an interrupted evaluation,
start the same command again.

  solopo evaluate --model outputs/solo_dpo/hf --suite builtin
  solopo evaluate --model Qwen2.5-7B-Instruct --suite ruler_qa,longbench_qa --data evaluation_data
  solopo evaluate --compare outputs/evaluation/base outputs/evaluation/solo --out outputs/comparison
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from solopo_nemo.evaluation.suites import SUITES
from solopo_nemo.runtime.cli import (
    ArgumentParser,
    add_literal,
    add_server,
    add_template_kwargs,
    list_of,
    path_or_name,
    settings_of,
    show_json,
)
from solopo_nemo.runtime.errors import require
from solopo_nemo.runtime.units import token_count

_READ_BY = {"lengths": {"builtin", "niah_plus", "ruler_qa"}, "depths": {"niah_plus"}, "seeds": {"longbench_v2"}}
"""Options that only some suites read."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    logging.basicConfig(format="%(message)s")
    given = _parser().parse_args(arguments)
    from rich.console import Console

    from solopo_nemo.evaluation.differences import differences
    from solopo_nemo.evaluation.measured import Measured, model_name
    from solopo_nemo.evaluation.report import write_report
    from solopo_nemo.evaluation.tables import as_json, measured_suites, suite_table, unlike_names

    if given.compare:
        alone = not given.model and not given.suite
        require(alone, "--compare: takes folders that were evaluated; leave --model and --suite out")
        models = [Measured.read(folder) for folder in given.compare]
        out = given.out or Path("outputs/comparison")
    else:
        both = given.model and given.suite
        require(both, "--model and --suite are needed (or --compare with evaluated folders)")
        folder = Path(given.model)
        name = model_name(str(folder.resolve()) if folder.is_dir() else given.model)
        out = given.out or Path("outputs/evaluation") / name
        models = [_evaluate(given, out)]
    console, names = Console(stderr=True, markup=False), unlike_names(models)
    notes = differences(models, names)
    page = write_report(models, out / "report", notes)
    for suite, views in measured_suites(models):
        console.print(suite_table(suite, views, names).terminal())
    for note in notes:
        console.print(f"not alike: {note}", highlight=False, soft_wrap=True)
    console.print(f"report: {page}", highlight=False)
    show_json(given, as_json(models) | ({"differences": notes} if given.compare else {}))


def _evaluate(given: Any, out: Path) -> Any:
    from solopo_nemo.builders.pairs.serving import serving
    from solopo_nemo.evaluation.models import ModelSettings
    from solopo_nemo.evaluation.run import evaluate
    from solopo_nemo.evaluation.settings import SuiteSettings
    from solopo_nemo.evaluation.suites import find_suites
    from solopo_nemo.evaluation.suites.builtin import LONGEST
    from solopo_nemo.families.hf import is_checkpoint
    from solopo_nemo.training.checkpoints.files import check_origin
    from solopo_nemo.training.prepare import find_tokenizer

    if is_checkpoint(Path(given.model)):
        vouch = "tools/convert.py export --trust-checkpoint makes a Hugging Face folder of it"
        check_origin(Path(given.model), "--model", False, vouch)

    if given.tokenizer:
        given.tokenizer = find_tokenizer(given.tokenizer)
    suites, settings = find_suites(given.suite), settings_of(given, SuiteSettings)
    names = {suite.name for suite in suites}
    for option, readers in _READ_BY.items():
        read = not getattr(given, option) or not readers.isdisjoint(names)
        require(read, f"--{option}: is for {', '.join(sorted(readers))}, and --suite is {given.suite}: leave it out")
    multiples = not given.lengths or not names.isdisjoint({"niah_plus", "ruler_qa"}) or max(given.lengths) <= LONGEST
    require(multiples, f"--lengths: of builtin are multiples of the short length, 1 to {LONGEST}, such as 1,2,4,8")
    with serving(given.serve, given.model, given.base_url, given.patience, out / "server.log") as server:
        given.base_url, given.alive = server
        return evaluate(settings_of(given, ModelSettings), suites, settings, out)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    option = parser.options("what")
    model = "Hugging Face folder, a checkpoint of a run (its weights and context folders), or a server's model name"
    option("--model MODEL", model, type=path_or_name)
    option("--suite NAME[,NAME]", f"suites: {', '.join(SUITES)}")
    compare = "compare the folders of earlier evaluations; differences are relative to the first"
    option("--compare FOLDER", compare, type=Path, nargs="+")
    option(
        "--out FOLDER",
        "folder to write (default outputs/evaluation/NAME of the model or run, or outputs/comparison)",
        type=Path,
    )

    option, numbers = parser.options("how"), list_of(int)
    data = "folder of the data, SUITE/DATASET.jsonl; missing files are downloaded from the hub"
    option("--data FOLDER", data, Path("evaluation_data"))
    lengths = (
        "prompt lengths of ruler_qa and niah_plus, answer included (default 4K,8K,16K,32K; to 1M and beyond); of "
        "builtin: multiples of the short length (default 1,2,4,8; to 32)"
    )
    option("--lengths N,N", lengths, type=list_of(token_count))
    option("--depths P,P", "depths of the needle in niah_plus, in percent (default 0,25,50,75,100)", type=numbers)
    option("--limit N", "questions in each cell (default: the suite's own number)", type=int)
    option("--seeds N,N", "seeds of longbench_v2, which samples its answers (default 0,1,2)", type=numbers)
    option("--max-new-tokens N", "longest answer in tokens (default: the suite's own)", type=token_count)
    option("--yarn F", "extend the model's window by the factor F with YaRN", type=float)
    option("--skip-bad", "continue without bad rows of the data, and name them")
    add_literal(option)
    add_template_kwargs(option)

    option = parser.options("with a server; the key is taken from OPENAI_API_KEY")
    option("--base-url URL", "address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    tokenizer = "folder of the server's tokenizer, or a name on the hub, for suites that count tokens"
    option("--tokenizer FOLDER", tokenizer, type=path_or_name)
    option("--window N", "longest sequence that the server accepts, in tokens", type=token_count)
    option("--concurrency N", "prompts at the same time", 16)
    add_server(option)
    parser.add_json()
    parser.set_defaults(date=None, alive=None)
    return parser
