"""Answer accuracy on the built-in questions by context length, and the before/after table."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.progress import Progress
from rich.table import Table

from solopo_nemo.embedded import SHORT_PARAGRAPHS, generate_evaluation
from solopo_nemo.runtime.errors import UserError


@dataclass(frozen=True)
class AccuracyRow:
    """Accuracy at one context length.

    Attributes:
        length: context length as a multiple of the short one.
        paragraphs: paragraphs of each context.
        tokens: mean prompt length in tokens.
        correct: questions answered exactly.
        total: questions asked.
        accuracy: `correct / total`.
        low: lower end of the 95 % Wilson interval.
        high: upper end of the interval.
    """

    length: int
    paragraphs: int
    tokens: float
    correct: int
    total: int
    accuracy: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        """The row as plain JSON values."""
        return asdict(self)


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion. Unlike the normal interval, it is accurate near 0 and 1."""
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def evaluate_accuracy(
    model_dir: str | Path,
    lengths: Sequence[int],
    questions: int,
    seed: int,
    chat_template_kwargs: dict[str, Any] | None = None,
    date: str | None = None,
) -> list[AccuracyRow]:
    """Ask built-in evaluation questions at several context lengths, as the suite `builtin` does.

    Args:
        model_dir: Hugging Face folder with a model and a tokenizer.
        lengths: context lengths as multiples of the short one.
        questions: number of questions at each length.
        seed: seed of the evaluation questions. They share no fact with any training question.
        chat_template_kwargs: keyword arguments of the model's chat template.
        date: date that the chat template prints; None uses that of the model's training data, or today.

    Raises:
        UserError: the folder holds no usable model.
    """
    from solopo_nemo.evaluation.models import EvaluatedModel, ModelSettings
    from solopo_nemo.evaluation.run import evaluate
    from solopo_nemo.evaluation.settings import SuiteSettings
    from solopo_nemo.evaluation.suites.builtin import builtin_suite

    suite, rows = builtin_suite(lengths, seed), []
    model = ModelSettings(str(model_dir), chat_template_kwargs=chat_template_kwargs, date=date)
    with TemporaryDirectory() as scratch, Progress(transient=True) as bars, redirect_stderr(io.StringIO()):
        folder = Path(scratch)
        settings = SuiteSettings(folder, limit=questions)

        def show(stage: str, parts: int) -> Callable[[], None]:
            task = bars.add_task(stage, total=parts)
            return lambda: bars.advance(task)

        measured = evaluate(model, [suite], settings, folder, show).suites[suite.name]
        opened = EvaluatedModel(model, folder)
    for length in lengths:
        asked = generate_evaluation(questions, seed, length * SHORT_PARAGRAPHS)
        tokens = sum(opened.tokens(row["prompt"][0]["content"]) for row in asked) / questions
        correct = int(measured.loc[measured["length"] == length, "value"].sum())
        share, interval = correct / questions, wilson_interval(correct, questions)
        rows.append(AccuracyRow(length, length * SHORT_PARAGRAPHS, tokens, correct, questions, share, *interval))
    return rows


def comparison_table(before: Sequence[AccuracyRow], after: Sequence[AccuracyRow]) -> Table:
    """Accuracy before and after training, by context length, with 95 % intervals.

    Raises:
        UserError: the two lists have different context lengths.
    """
    if [row.length for row in before] != [row.length for row in after]:
        raise UserError("accuracy table: before and after have different context lengths; evaluate both at the same")
    table = Table(title="Answer accuracy by context length (exact match, 95 % interval)")
    for heading in ("context", "paragraphs", "tokens", "questions", "before", "after", "change"):
        table.add_column(heading, justify="right")
    for old, new in zip(before, after, strict=True):
        table.add_row(
            f"{new.length}x",
            str(new.paragraphs),
            f"{new.tokens:.0f}",
            str(new.total),
            _cell(old),
            _cell(new),
            f"{100 * (new.accuracy - old.accuracy):+.1f}",
        )
    return table


def _cell(row: AccuracyRow) -> str:
    return f"{100 * row.accuracy:.1f} % ({100 * row.low:.0f}-{100 * row.high:.0f})"
