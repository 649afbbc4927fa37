"""Exact answer accuracy by context length on the built-in question set, and the before/after table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress
from rich.table import Table

from solopo_nemo.data.answers import normalize, stated_answer
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.vocabulary import check_tokenizer
from solopo_nemo.embedded import generate_evaluation
from solopo_nemo.families.hf import transformers_config
from solopo_nemo.runtime.errors import UserError

Messages = list[dict[str, str]]
Answerer = Callable[[list[Messages]], list[str]]

LENGTHS = (1, 2, 4, 8)
Z_95 = 1.959964
_TOKENS_A_BATCH = 8192


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
        high: upper end of it.
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


def is_correct(text: str, answers: Iterable[str]) -> bool:
    """Whether the answer that `text` states after the prefix equals one of `answers`, in normal form."""
    stated = stated_answer(text)
    return stated.prefixed and normalize(stated.text) in {normalize(answer) for answer in answers}


def wilson_interval(correct: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a proportion; unlike the normal one it holds near 0 and 1."""
    share = correct / total
    centre = share + z * z / (2 * total)
    half = z * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    # The ends are exact at 0 and 1, where rounding would leave the proportion outside its own interval.
    return (centre - half) / scale if correct else 0.0, (centre + half) / scale if correct < total else 1.0


def count_correct(answerer: Answerer, questions: Sequence[dict[str, Any]]) -> int:
    """How many of the questions (`prompt`, `answers`) the answerer gets right."""
    texts = answerer([question["prompt"] for question in questions])
    return sum(is_correct(text, question["answers"]) for text, question in zip(texts, questions, strict=True))


class GreedyAnswerer:
    """Answers prompts with a Hugging Face model by greedy decoding."""

    def __init__(self, model_dir: str | Path, device: str = "cpu", max_new_tokens: int = 64) -> None:
        from transformers import AutoModelForCausalLM

        if not (Path(model_dir) / "config.json").is_file():
            raise UserError(f"evaluation: no config.json in {model_dir}; give a Hugging Face model folder")
        self._tokenizer: Any = load_tokenizer(model_dir)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.chat_template is None:
            raise UserError(f"evaluation: the tokenizer in {model_dir} has no chat template; use one that has")
        model: Any = AutoModelForCausalLM.from_pretrained(model_dir, config=transformers_config(Path(model_dir)))
        check_tokenizer(self._tokenizer, model.config.vocab_size, f"evaluation: {model_dir}")
        self._model = model.to(device).eval()
        self._max_new_tokens = max_new_tokens

    def encode(self, prompts: list[Messages]) -> list[list[int]]:
        """The prompts as token ids, up to where the answer begins."""
        return self._tokenizer.apply_chat_template(prompts, add_generation_prompt=True)

    def __call__(self, prompts: list[Messages]) -> list[str]:
        """One answer text a prompt."""
        batch = self._tokenizer.apply_chat_template(
            prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(self._model.device)
        out = self._model.generate(
            batch["input_ids"],
            attention_mask=batch["attention_mask"],
            do_sample=False,
            max_new_tokens=self._max_new_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        return self._tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


def evaluate_accuracy(
    model_dir: str | Path,
    lengths: Sequence[int] = LENGTHS,
    questions_per_length: int = 128,
    seed: int = 0,
    short_paragraphs: int = 8,
    hops: int = 2,
    device: str = "cpu",
) -> list[AccuracyRow]:
    """Ask built-in evaluation questions at several context lengths.

    Args:
        model_dir: Hugging Face folder with a model and a tokenizer that has a chat template.
        lengths: context lengths as multiples of `short_paragraphs`.
        questions_per_length: questions a length.
        seed: of the evaluation questions, which share no fact with any training question.
        short_paragraphs: paragraphs of a context of length 1.
        hops: facts that have to be combined.
        device: torch device.

    Raises:
        UserError: the folder holds no model that can be asked.
    """
    if questions_per_length < 1:
        raise UserError(f"evaluation: questions_per_length is {questions_per_length}; ask for one or more")
    answerer = GreedyAnswerer(model_dir, device)
    rows = []
    with Progress(transient=True) as progress:
        task = progress.add_task("evaluation", total=questions_per_length * len(lengths))
        for length in lengths:
            paragraphs = length * short_paragraphs
            questions = list(generate_evaluation(questions_per_length, seed, paragraphs, hops))
            sizes = [len(ids) for ids in answerer.encode([question["prompt"] for question in questions])]
            size = max(1, _TOKENS_A_BATCH // max(sizes))
            correct = 0
            progress.update(task, description=f"evaluation at {length}x")
            for start in range(0, len(questions), size):
                batch = questions[start : start + size]
                correct += count_correct(answerer, batch)
                progress.advance(task, len(batch))
            low, high = wilson_interval(correct, len(questions))
            rows.append(
                AccuracyRow(
                    length=length,
                    paragraphs=paragraphs,
                    tokens=sum(sizes) / len(sizes),
                    correct=correct,
                    total=len(questions),
                    accuracy=correct / len(questions),
                    low=low,
                    high=high,
                )
            )
    return rows


def comparison_table(before: Sequence[AccuracyRow], after: Sequence[AccuracyRow]) -> Table:
    """Accuracy before and after training, by context length, with 95 % intervals.

    Raises:
        UserError: the two were not measured at the same lengths.
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
