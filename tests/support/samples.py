from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>"]
# adds a system message of its own
QWEN = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# strips contents
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|head|>{{ m['role'] }}<|/head|>\n\n{{ m['content'] | trim }}<|eot|>"
    "{% endfor %}{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
IGNORES_GENERATION = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
NO_END_TOKEN = (
    "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + IGNORES_GENERATION
)
NOT_A_PREFIX = (
    "{% if add_generation_prompt %}ask: {% else %}talk: {% endif %}"
    "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}"
)
TEMPLATES = {
    "qwen": QWEN,
    "llama": LLAMA,
    "ignores_generation": IGNORES_GENERATION,
    "no_end_token": NO_END_TOKEN,
    "refuses_system": REFUSES_SYSTEM,
    "not_a_prefix": NOT_A_PREFIX,
}

TokenizerMaker = Callable[..., PreTrainedTokenizerFast]
RowWriter = Callable[..., Path]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def with_template(tokenizer: Tokenizer, template: str | None, **options: Any) -> PreTrainedTokenizerFast:
    special = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|end|>"} | options
    special = {name: token for name, token in special.items() if token is not None}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    wrapped.chat_template = template
    return wrapped


def triplet_row(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A valid triplet; a change to None takes the field out."""
    row = {
        "id": f"t{number}",
        "prompt_short": [{"role": "user", "content": f"short question {number}"}],
        "prompt_long": [{"role": "user", "content": f"long context {'and more ' * 20} question {number}"}],
        "chosen": "The answer is: 1960",
        "rejected": "The answer is: No answer.",
    } | changes
    return {name: value for name, value in row.items() if value is not None}


def musique_rows(count: int, paragraphs: int = 8) -> list[dict[str, Any]]:
    """Questions in MuSiQue's schema with two supporting paragraphs; every paragraph is unlike every other."""
    random = Random(0)
    syllables = ["ba", "ke", "lo", "mi", "nu", "ra", "si", "to", "ve", "zu"]

    def word() -> str:
        return "".join(random.choices(syllables, k=random.randint(2, 4)))

    def sentence(words: int) -> str:
        return " ".join(word() for _ in range(words)).capitalize() + "."

    rows = []
    for number in range(count):
        answer = f"Answer{number}x {word().capitalize()}"
        texts = [
            f"{sentence(20)} It met {word().capitalize()} {word().capitalize()} in {1900 + number}. {sentence(20)}"
            for _ in range(paragraphs)
        ]
        texts[1] += f" The founder was {answer}."
        rows.append(
            {
                "id": f"q{number}",
                "question": f"Who founded place {number}?",
                "answer": answer,
                "answer_aliases": [f"A{number}x"],
                "answerable": True,
                "paragraphs": [
                    {
                        "idx": i,
                        "title": f"{word().capitalize()} {number}.{i}",
                        "paragraph_text": t,
                        "is_supporting": i < 2,
                    }
                    for i, t in enumerate(texts)
                ],
            }
        )
    return rows
