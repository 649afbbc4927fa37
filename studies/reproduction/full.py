"""The commands of the paper's protocol at full size, with the checks that need no GPUs."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from solopo_nemo.pages.tables import Table
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.progress import with_progress
from studies.paths import ROOT
from studies.reproduction.methods import METHODS, SAFE, Method, solo

GPUS = 8
SHORT_TOKENS, LONG_TOKENS, RESPONSE_TOKENS = 1100, 7500, 256
PAIRS = 5000
SWEPT = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Alphas of the sweep. The paper reports optima of 1 and 4; its grid is not known here."""
SELECT = "trainer.select_best=longbench_qa"
"""Keep the checkpoint that is best on LongBench's QA tasks, as in the paper; the default is the last checkpoint."""


@dataclass(frozen=True)
class Model:
    """A model of the paper.

    Attributes:
        name: value of `model=`.
        title: display name, and name on the server.
        tokenizer: local folder of the model.
        objectives: objectives with which the paper trains it.
        layout: overrides of the layout for one node with eight GPUs of 80 GiB.
    """

    name: str
    title: str
    tokenizer: str
    objectives: tuple[str, ...]
    layout: tuple[str, ...]


MODELS = (
    Model(
        "qwen2_5_7b",
        "Qwen2.5-7B-Instruct",
        "Qwen2.5-7B-Instruct/",
        ("dpo", "simpo", "orpo"),
        ("parallel.tensor=4", "parallel.sequence=true"),
    ),
    Model(
        "llama3_1_8b",
        "Llama-3.1-8B-Instruct",
        "Llama-3.1-8B-Instruct/",
        ("orpo",),
        ("parallel.tensor=4", "parallel.sequence=true"),
    ),
)


@dataclass(frozen=True)
class Step:
    """One command of the protocol.

    Attributes:
        stage: ``contexts``, ``pairs``, ``train``, ``evaluate`` or ``compare``.
        model: title of the model.
        what: description of the step.
        words: words of the command after ``python``.
    """

    stage: str
    model: str
    what: str
    words: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command line."""
        return shlex.join(("python", *self.words))


def steps() -> Iterator[Step]:
    """The steps of the whole protocol in order."""
    for model in MODELS:
        folder = f"outputs/7b/{model.name}"
        yield Step("contexts", model.title, "MuSiQue, short and long", _contexts(model, folder))
        yield Step("pairs", model.title, "32 answers a prompt, both sides, from a server", _pairs(model, folder))
        methods = _methods(model)
        for method in methods:
            yield Step("train", model.title, method.title, _train(model, method, folder))
        names = ["base", *(method.name for method in methods)]
        for name in names:
            yield Step("evaluate", model.title, name, _evaluate(model, name, folder))
        compared = [f"{folder}/evaluation/{name}" for name in names]
        yield Step(
            "compare",
            model.title,
            "tables, curves and heat maps",
            ("tools/evaluate.py", "--compare", *compared, "--out", f"{folder}/comparison"),
        )


def _contexts(model: Model, folder: str) -> tuple[str, ...]:
    return (
        "tools/build_contexts.py", "--source", "musique_ans_v1.0_train.jsonl", "--tokenizer", model.tokenizer,
        "--short-tokens", str(SHORT_TOKENS), "--long-tokens", str(LONG_TOKENS), "--workers", "8",
        "--out", f"{folder}/contexts.jsonl",
    )  # fmt: skip


def _pairs(model: Model, folder: str) -> tuple[str, ...]:
    return (
        "tools/sample_pairs.py", "--contexts", f"{folder}/contexts.jsonl", "--backend", "openai",
        "--base-url", "http://localhost:8000/v1", "--model", model.title, "--on", "both", "--size", str(PAIRS),
        "--samples", "32", "--temperature", "0.85", "--out", f"{folder}/pairs.jsonl",
    )  # fmt: skip


def _methods(model: Model) -> list[Method]:
    """The methods of Table 3, Figure 2 and Figure 4, with the paper's alignment and the preset's alpha."""
    kept = [
        method
        for method in METHODS.values()
        if method.objective in (*model.objectives, "sft") and (method.name != "longpo" or model is MODELS[0])
    ]
    sweep = [solo("orpo", f"-alpha-{value:g}", f", alpha {value:g}", alpha=value) for value in SWEPT]
    return [*kept, *sweep]


def _train(model: Model, method: Method, folder: str) -> tuple[str, ...]:
    swept = "-alpha-" in method.name
    overrides = [word for word in method.overrides if word != SAFE and (swept or "objective.alpha=" not in word)]
    return (
        f"recipes/{method.recipe}.py",
        f"model={model.name}",
        f"data.train={folder}/{_data(method)}",
        f"output_dir={folder}/{method.name}",
        *model.layout,
        *overrides,
        "evaluation=none",
        "trainer.checkpoint_every=20",
        SELECT,
    )


def _data(method: Method) -> str:
    """The file of pairs: triplets for SoLo, Expand-Long and LongPO; a dataset of Table 2 for the other methods."""
    family = method.name.split("-")[0]
    table_2 = {"short": "pairs.po_short.jsonl", "long": "pairs.po_long.jsonl"}
    if family == "sft":
        return f"pairs.{method.name.replace('-', '_')}.jsonl"
    return table_2.get(family, "pairs.jsonl")


def _evaluate(model: Model, name: str, folder: str) -> tuple[str, ...]:
    policy = model.tokenizer if name == "base" else f"{folder}/{name}/hf"
    suites = "ruler_qa,longbench_qa,longbench_v2,niah_plus,open_llm"
    return ("tools/evaluate.py", "--model", policy, "--suite", suites, "--out", f"{folder}/evaluation/{name}")


def protocol(check: bool) -> dict[str, Any]:
    """Print the protocol.

    Args:
        check: also compose the configuration of every recipe, check its layout for the model and eight GPUs, predict
            memory and time, and check that the tools have all options.

    Returns:
        The commands, with predictions if ``check`` is true.

    Raises:
        UserError: a check failed.
    """
    found = list(steps())
    predictions = {step: _checked(step) for step in with_progress(found, "checking")} if check else {}
    console = Console(highlight=False)
    for stage in dict.fromkeys((step.model, step.stage) for step in found):
        console.print(f"\n[bold]{stage[0]}: {stage[1]}[/bold]")
        for step in found:
            if (step.model, step.stage) == stage:
                console.print(f"# {step.what}", style="dim")
                console.print(step.command, markup=False, soft_wrap=True)
    if check:
        console.print(_predicted(predictions).terminal())
        console.print(
            f"{len(found)} commands: configurations, layouts on {GPUS} GPUs and options are good. "
            "Not checked: data, weights, GPUs."
        )
    return {
        "commands": [
            {"stage": step.stage, "model": step.model, "what": step.what, "command": step.command}
            | (predictions.get(step) or {})
            for step in found
        ]
    }


def _checked(step: Step) -> dict[str, float] | None:
    script, arguments = step.words[0], step.words[1:]
    if step.stage != "train":
        _check_options(script, arguments)
        return None
    from solopo_nemo.config.schema import load_config
    from solopo_nemo.config.world import check_model, check_world
    from solopo_nemo.planning import GPU, Lengths, Machine, Plan, Run, load_shape

    config = load_config(Path(script).stem, arguments)
    shape = load_shape(config.model.init)
    check_world(config, GPUS)
    check_model(config, shape)
    machine = Machine(gpus=GPUS)
    lengths = Lengths(LONG_TOKENS, SHORT_TOKENS, RESPONSE_TOKENS)
    plan = Plan.of(Run.of(config, shape, lengths, GPUS, GPU), machine)
    if not plan.fits:
        raise UserError(f"{step.command}: {plan.memory.gib:.0f} GiB a GPU do not fit; change the layout in {__name__}")
    return {"gib": round(plan.memory.gib, 1), "hours": round(plan.hours(PAIRS), 2)}


def _check_options(script: str, arguments: Sequence[str]) -> None:
    """Check that the tool's ``--help`` lists every option."""
    known = _options(script)
    for word in arguments:
        if word.startswith("--") and word not in known:
            raise UserError(f"{script} has no option {word}")


@cache
def _options(script: str) -> frozenset[str]:
    words = [sys.executable, str(ROOT / script), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{script} --help: {done.stderr.strip().splitlines()[-1]}")
    return frozenset(re.findall(r"(?<![\w-])--[\w-]+", done.stdout))


def _predicted(predictions: dict[Step, dict[str, float] | None]) -> Table:
    rows = [
        (step.model, step.what, f"{prediction['gib']:.1f}", f"{prediction['hours']:.1f}")
        for step, prediction in predictions.items()
        if prediction
    ]
    head = ("model", "method", "GiB a GPU, predicted", "hours, predicted")
    return Table(head, rows, "llr", title=f"on {GPUS} GPUs of 80 GiB")
