"""Generators of the embedded question set: training contexts, evaluation prompts and dialogues.

Each question is a function of its seed and number. The training triplets add answers that were sampled from the
embedded model; these answers are shipped with the package.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

from solopo_nemo.data.answers import ANSWER_PREFIX
from solopo_nemo.embedded.world import Fact, Paragraph, Split, World, ask, build_world
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_PAIRS

SHORT_PARAGRAPHS = 8
"""Paragraphs of a short training context, and of an evaluation context of length 1x."""
_INSTRUCTION = f"State the facts, then end with: {ANSWER_PREFIX} ..."


def question_turn(question: str) -> str:
    """The last line of a prompt. It puts the question next to the answer, which begins with the same subject."""
    return f"Question: {question}"


def prompt(paragraphs: Sequence[Paragraph], question: str) -> list[dict[str, str]]:
    """The chat messages that ask `question` about `paragraphs`."""
    passages = "\n".join(f"- {paragraph.text}" for paragraph in paragraphs)
    return [{"role": "user", "content": f"{_INSTRUCTION}\n\nPassages:\n{passages}\n\n{question_turn(question)}"}]


def response(chain: Sequence[Fact]) -> str:
    """A chain of thought that repeats each fact in the wording of the passages, followed by the answer."""
    return f"Facts: {' '.join(fact.sentence for fact in chain)} {ANSWER_PREFIX} {chain[-1].object}."


def _world(split: Split, seed: int, number: int, paragraphs: int, hops: int) -> tuple[World, random.Random]:
    rng = random.Random(f"{split}/{seed}/{number}")
    return build_world(rng, paragraphs, hops, split), rng


def generate_contexts(
    count: int, seed: int, short_paragraphs: int = SHORT_PARAGRAPHS, long_paragraphs: int = 64, hops: int = 2
) -> Iterator[dict[str, Any]]:
    """Generate training questions with a short context and a long context that contains it.

    Args:
        count: number of questions.
        seed: seed of the questions. Question n of a seed does not depend on `count`.
        short_paragraphs: paragraphs of the short prompt. The long prompt contains them in the same order.
        long_paragraphs: paragraphs of the long prompt.
        hops: facts to combine, 1 to 3.

    Yields:
        Rows of a contexts file: `id`, `prompt_short`, `prompt_long`, `answers`.

    Raises:
        UserError: the short context is larger than the long one or too small for the question.
    """
    for number in range(count):
        yield _context(number, seed, short_paragraphs, long_paragraphs, hops)


def generate_triplets(count: int, long_paragraphs: int = 64) -> Iterator[dict[str, Any]]:
    """Generate the embedded training set: questions with a correct and an incorrect answer of the embedded model.

    `tools/make_tiny_model.py` sampled the answers on the short prompts with `long_paragraphs=64`. Another value keeps
    the facts of a question and changes the order of its paragraphs.

    Args:
        count: number of triplets.
        long_paragraphs: paragraphs of the long prompt.

    Yields:
        Records of the triplet file format.

    Raises:
        UserError: `count` exceeds the shipped pairs, or `long_paragraphs` is out of range.
    """
    with gzip.open(EMBEDDED_PAIRS, "rt", encoding="utf-8") as stream:
        pairs = [json.loads(line) for line in stream]
    if count > len(pairs):
        raise UserError(f"data.builtin.samples={count}: the embedded training set has {len(pairs)} samples")
    for pair in pairs[:count]:
        row = _context(pair["number"], 0, SHORT_PARAGRAPHS, long_paragraphs, hops=2)
        yield row | {"chosen": pair["chosen"], "rejected": pair["rejected"]}


def right_response(number: int, seed: int, long_paragraphs: int = 64, hops: int = 2) -> str:
    """The correct chain of thought for question `number` of :func:`generate_contexts`."""
    return response(_world("train", seed, number, long_paragraphs, hops)[0].chains[0])


def _context(number: int, seed: int, short_paragraphs: int, long_paragraphs: int, hops: int) -> dict[str, Any]:
    if not 2 * hops <= short_paragraphs <= long_paragraphs:
        raise UserError(
            f"built-in contexts: {short_paragraphs} short and {long_paragraphs} long paragraphs; "
            f"the short context needs {2 * hops} or more and no more than the long one"
        )
    world, _ = _world("train", seed, number, long_paragraphs, hops)
    return {
        "id": f"{hops}hop__train_{seed}_{number}",
        "prompt_short": prompt(world.nested(short_paragraphs), world.question),
        "prompt_long": prompt(world.paragraphs, world.question),
        "answers": [world.chains[0][-1].object],
    }


def generate_evaluation(
    count: int, seed: int, paragraphs: int = SHORT_PARAGRAPHS, hops: int = 2
) -> Iterator[dict[str, Any]]:
    """Generate evaluation questions about facts that occur in no training context.

    Args:
        count: number of questions.
        seed: seed of the questions. Question n of a seed does not depend on `count`.
        paragraphs: paragraphs of each prompt.
        hops: facts to combine, 1 to 3.

    Yields:
        Rows with `id`, `prompt` (chat messages) and `answers`.

    Raises:
        UserError: `hops` or `paragraphs` is out of range.
    """
    for number in range(count):
        world, _ = _world("evaluation", seed, number, paragraphs, hops)
        yield {
            "id": f"{hops}hop__evaluation_{seed}_{number}",
            "prompt": prompt(world.paragraphs, world.question),
            "answers": [world.chains[0][-1].object],
        }


def generate_dialogues(
    count: int, seed: int, paragraphs: int, hops: int = 2, questions: int = 4
) -> Iterator[list[dict[str, str]]]:
    """Generate dialogues for pre-training: several questions about one context, with correct answers.

    The first turn equals a prompt of the other generators. Each further turn asks about another chain of the context,
    from its beginning or from a later hop.

    Args:
        count: number of dialogues.
        seed: seed of the dialogues.
        paragraphs: paragraphs of the context.
        hops: facts to combine, 1 to 3.
        questions: maximum number of questions per dialogue.

    Yields:
        The chat messages of a dialogue.

    Raises:
        UserError: `hops` or `paragraphs` is out of range.
    """
    for number in range(count):
        world, rng = _world("train", seed, number, paragraphs, hops)
        # the last facts of a chain make a question with fewer hops; the world's own question comes first
        asked = [chain[rng.randrange(len(chain)) :] for chain in rng.sample(world.chains, len(world.chains))]
        messages = prompt(world.paragraphs, world.question)
        messages.append({"role": "assistant", "content": response(world.chains[0])})
        for chain in asked[: questions - 1]:
            messages.append({"role": "user", "content": question_turn(ask(chain))})
            messages.append({"role": "assistant", "content": response(chain)})
        yield messages
