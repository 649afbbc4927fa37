"""The Open LLM Leaderboard's tasks, run by lm_eval: they show whether training preserved short-context skills."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version

from solopo_nemo.evaluation.models import EvaluatedModel
from solopo_nemo.evaluation.settings import SuiteSettings
from solopo_nemo.evaluation.suites.suite import Suite, View
from solopo_nemo.evaluation.task import Label, LibraryCell
from solopo_nemo.runtime.errors import UserError, reason_of

GROUPS = {
    "MMLU-Pro": ("leaderboard_mmlu_pro", "acc"),
    "IFEval": ("leaderboard_ifeval", "prompt_level_strict_acc"),
    "BBH": ("leaderboard_bbh", "acc_norm"),
    "MATH": ("leaderboard_math_hard", "exact_match"),
    "GPQA": ("leaderboard_gpqa", "acc_norm"),
}
"""Benchmark name, lm_eval's task group, and the score that the leaderboard shows."""


def _cells(model: EvaluatedModel, settings: SuiteSettings) -> Iterator[LibraryCell]:
    if model.remote:
        raise UserError(
            "open_llm: MMLU-Pro, BBH and GPQA score log-probabilities of given answers, which chat servers do not "
            "return: evaluate the model's folder"
        )
    _require_math()
    from lm_eval.tasks import TaskManager

    manager = TaskManager()
    for title, (group, metric) in GROUPS.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                tasks = manager.load([group])["tasks"]
            except Exception as error:  # the hub client and the file readers raise many types
                reason = reason_of(error)
                raise UserError(
                    f"open_llm: {title}: lm_eval's {group} cannot be loaded ({reason}): it takes its data from the "
                    "Hugging Face hub; on a machine without it, set HF_HOME to a cache filled elsewhere (GPQA and "
                    "others may want a login), and HF_HUB_OFFLINE=1"
                ) from None
        for name, task in tasks.items():
            yield LibraryCell(name, metric, {"benchmark": title, "task": name}, settings.limit, task)


def _require_math() -> None:
    """Check for the packages that score MATH. They conflict with Hydra's antlr, so they are not dependencies."""
    try:
        found = version("antlr4-python3-runtime").startswith("4.11") and bool(version("math-verify"))
    except PackageNotFoundError:
        found = False
    if not found:
        raise UserError(
            "open_llm: MATH is scored with math-verify and antlr 4.11, and Hydra has antlr 4.9: put them into a "
            "folder (pip install --target .math 'antlr4-python3-runtime==4.11.*' math-verify) and start with "
            "PYTHONPATH=.math"
        )


def _views(labels: Mapping[str, list[Label]]) -> list[View]:
    views = [View(str(title), {"benchmark": title}) for title in labels["benchmark"]]
    return [*views, View("average", each=("benchmark",))]


SUITE = Suite(
    "open_llm",
    "Open LLM Leaderboard",
    "Each benchmark's own score over all its questions, by lm_eval; greedy.",
    _cells,
    _views,
)
