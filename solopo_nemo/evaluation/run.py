"""An evaluation run: check the inputs, generate answers, score them, and write the results."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import solopo_nemo
from solopo_nemo.builders.pairs.backend import kind_of
from solopo_nemo.data.answers import FIRST_RULE
from solopo_nemo.data.template_date import pinned_date
from solopo_nemo.evaluation.answers import LENGTH, AnswerCache
from solopo_nemo.evaluation.measured import CELLS, RECORD, Measured
from solopo_nemo.evaluation.models import EvaluatedModel, ModelSettings
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites.suite import Suite
from solopo_nemo.evaluation.task import AnyCell, Cell
from solopo_nemo.runtime.credentials import masked
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.isolated import Progress
from solopo_nemo.runtime.json_files import read_json, write_json
from solopo_nemo.runtime.output import check_writable

logger = logging.getLogger("solopo_nemo")


WORK = "work"
"""Subfolder of an evaluation for the exported checkpoint."""


@dataclass(frozen=True)
class _Planned:
    suite: Suite
    cell: AnyCell
    path: Path
    fingerprint: str

    def stored(self) -> dict[str, Any]:
        """Content of the score file; empty where there is none."""
        return read_json(self.path, missing={})

    def finished(self) -> bool:
        """True if the score file is up to date, and has an answer to every question."""
        stored = self.stored()
        return stored.get("fingerprint") == self.fingerprint and not stored.get("unanswered")


def evaluate(
    model: ModelSettings,
    suites: Sequence[Suite],
    settings: SuiteSettings,
    out: Path,
    progress: Progress | None = None,
) -> Measured:
    """Evaluate a model and write one score file for each cell.

    1. Read all data and build all prompts.
    2. Skip the cells whose score file is present and up to date.
    3. Load the model, and evaluate the remaining cells.

    Args:
        model: the model to evaluate.
        suites: the suites to run.
        settings: data folder, lengths, seeds and limits.
        out: output folder. It belongs to one model.
        progress: progress bar over the cells; None prints one line for each cell.

    Returns:
        All results in the folder, those of earlier runs included.

    Raises:
        UserError: a model, a data file or a server is unusable, or the folder belongs to another model.
    """
    check_writable(out, "--out")
    opened = EvaluatedModel(model, out / WORK)
    _settle(out, model, opened)
    planned = [
        _Planned(suite, cell, out / CELLS / suite.name / f"{cell.name}.json", f"{opened.identity}-{cell.fingerprint()}")
        for suite in suites
        for cell in suite.cells(opened, settings)
    ]
    missing = [one for one in planned if not one.finished()]
    if missing:
        console = Console(stderr=True, highlight=False, markup=False)
        for rule, count in sorted(Counter(filter(None, map(_other_rule, missing))).items()):
            console.print(f"{out}: {count} cells scored by answer rule {rule} are scored again", soft_wrap=True)
        done = progress("evaluating", len(missing)) if progress else None
        with closing(AnswerCache(opened.load(), out / "answers.sqlite", opened.identity)) as answers:
            for number, one in enumerate(missing, start=1):
                if done is None:
                    console.print(f"{number} of {len(missing)}: {one.suite.name} {one.cell.name}")
                _measure(one, opened, answers)
                if done is not None:
                    done()
            _say_gaps([one.stored() for one in planned], getattr(opened.load(), "cut_prompts", 0))
    return Measured.read(out)


def _say_gaps(cells: Sequence[dict[str, Any]], cut_prompts: int) -> None:
    """Say which answers are not whole, one line a kind."""
    asked, reasons = 0, Counter[str]()
    for cell in cells:
        lost = cell.get("unanswered", {})
        asked += len(cell["samples"]) + len(lost)
        reasons.update(sample["reason"] for sample in cell["samples"] if sample.get("reason"))
        reasons.update(map(kind_of, lost.values()))
    for reason, count in reasons.items():
        what = (
            "reached the longest answer (--max-new-tokens); only a whole closing line counts"
            if reason == LENGTH
            else f"are left out of the scores, and asked again by the same command: {reason}"
        )
        logger.warning("%d of %d answers %s", count, asked, what)
    if cut_prompts:
        logger.warning("%d prompts were cut by the server: start it with a longer window", cut_prompts)


def _settle(out: Path, model: ModelSettings, opened: EvaluatedModel) -> None:
    """Record in the folder which model it belongs to; refuse the folder of another model."""
    path = out / RECORD
    earlier = read_json(path, missing={})
    opened.day = earlier.get("date") or model.date
    if earlier and opened.remote and "server" not in earlier:
        raise UserError(
            f"--out {out}: holds an evaluation by an earlier version, which did not record the server's model: "
            "choose another folder"
        )
    if earlier and earlier["identity"] != opened.identity:
        raise UserError(
            f"--out {out}: holds the evaluation of another model or of other weights ({earlier['model']}): choose "
            "another folder, or remove this one"
        )
    server = opened.client.fingerprint(earlier.get("server")) if opened.remote else None
    if earlier and earlier.get("server", server) != server:
        raise UserError(
            f"--out {out}: holds the evaluation of another model that the server gave under the name {model.model} "
            "(its description or its answer to a fixed prompt differs): choose another folder, or serve the first one"
        )
    record = {
        "model": model.model,
        "base_url": model.base_url and masked(model.base_url),
        "yarn": model.yarn,
        "chat_template_kwargs": model.chat_template_kwargs,
        "extra_body": model.extra_body,
        "window": opened.window,
        "identity": opened.identity,
        "server": server,
        "date": None if opened.remote else pinned_date(opened.tokenizer),
        "version": solopo_nemo.__version__,
    }
    write_json(path, record)


def _other_rule(one: _Planned) -> str | None:
    """The rule of a score file, if it is another than today's."""
    stored = one.stored()
    if not stored or not isinstance(one.cell, Cell):
        return None
    rule = str(stored.get("settings", {}).get("answer_rule", FIRST_RULE))
    return None if rule == one.cell.rule else rule


def _measure(one: _Planned, model: EvaluatedModel, answers: AnswerCache) -> None:
    from lm_eval.evaluator import evaluate as lm_evaluate

    started, cell = time.monotonic(), one.cell
    answers.seed(cell.seed)
    model.prepare(cell.seed, cell.tokens)
    task = cell.task(model.remote)
    try:
        result = lm_evaluate(
            lm=answers,
            task_dict={"tasks": {cell.name: task}, "groups": {}},
            limit=cell.limit,
            bootstrap_iters=0,
            apply_chat_template=model.chat,
        )
    except UserError as error:
        raise UserError(f"{one.suite.name} {cell.name}: {error}: the same command goes on from here") from error
    samples = [cell.record(sample) for sample in result["samples"][cell.name]]
    lost = {sample["id"]: sample["reason"] for sample in samples if sample.get("reason", LENGTH) != LENGTH}
    if lost and len(lost) == len(samples):
        raise UserError(f"{one.suite.name} {cell.name}: no question is answered: {next(iter(lost.values()))}")
    record: dict[str, Any] = {
        "fingerprint": one.fingerprint,
        "suite": one.suite.name,
        "cell": cell.name,
        "labels": dict(cell.labels),
        "metric": cell.metric,
        "settings": cell.settings,
        "seconds": round(time.monotonic() - started, 1),
        "unanswered": lost,
        "samples": [sample for sample in samples if sample["id"] not in lost],
    }
    write_json(one.path, record, ensure_ascii=False, indent=1)
