"""The tokenizer, the starting model and the training pairs of the embedded default; see studies/make_tiny_model.py."""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from solopo_nemo.builders.pairs.backend import Sampling
from solopo_nemo.builders.pairs.hf import HuggingFaceBackend
from solopo_nemo.builders.pairs.run import PairSettings, sample_pairs
from solopo_nemo.embedded import generate_contexts, generate_dialogues
from solopo_nemo.embedded.generate import right_response
from studies.tiny import IGNORE, Curriculum, Schedule, attend_back, make_tiny_qwen2, pretrain

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen2's pattern, except that consecutive digits are not split: a year is one token.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SHORTEST = 4  # paragraphs of the first contexts in pre-training
MATCH = 3.0  # initial scale: a full match has about e^4 times the attention weight of a random one


@dataclass(frozen=True)
class Dialogue:
    """Token ids, and labels of the same length. Labels outside the responses are `IGNORE`."""

    ids: list[int]
    labels: list[int]


def make_tokenizer(vocabulary: int, seed: int) -> PreTrainedTokenizerFast:
    """Train a BPE tokenizer on generated dialogues, with the special tokens and ChatML template of Qwen2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    text = (message["content"] for turns in generate_dialogues(1500, seed, 16, hops=2) for message in turns)
    roles = (f"{role}\n" for role in ("user", "assistant", "system") for _ in range(1500))
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(text, roles), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=32768,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_model(tokenizer: PreTrainedTokenizerFast, layers: int, width: int, seed: int) -> Qwen2ForCausalLM:
    """Build a Qwen2 whose sizes allow tensor parallelism 2 and context parallelism 4."""
    model = make_tiny_qwen2(
        len(tokenizer),
        layers,
        width,
        key_value_heads=2,
        window=32768,
        end=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        seed=seed,
    )
    attend_back(model, (1, 2, 3, 4))  # the object of a fact is one to four tokens after the words that identify it
    start_as_induction_heads(model)
    start_as_copying_heads(model)
    return model


@torch.no_grad()
def start_as_induction_heads(model: Qwen2ForCausalLM) -> None:
    """Initialize the last layer's heads to compare the outputs of the first layer's heads.

    Before the object of a fact, the subject is four tokens back in the passage and three tokens back in the answer. The
    first two heads compare these tokens. The other two heads are induction heads: they find an earlier occurrence of
    the last token and attend to its successor, which yields the second half of a name.
    """
    config = model.config
    size = model.model.layers[0].self_attn.head_dim
    output = model.model.layers[0].self_attn.o_proj.weight
    values = model.model.layers[0].self_attn.v_proj.weight
    seen = [output[:, head * size : (head + 1) * size].T for head in range(config.num_attention_heads)]
    attention = model.model.layers[-1].self_attn
    attention.q_proj.weight[: 2 * size] = MATCH * torch.cat([seen[2], seen[2]])
    attention.q_proj.weight[2 * size :] = MATCH * 0.25 * torch.cat([values[:size], values[:size]])
    attention.k_proj.weight.copy_(MATCH * torch.cat([seen[3], seen[0]]))


@torch.no_grad()
def start_as_copying_heads(model: Qwen2ForCausalLM) -> None:
    """Initialize the last layer's heads to copy the tokens that they attend to.

    The output projection starts as the transpose of the value projection, and the language-model head as the scaled
    embedding. Training changes both. The model still has to learn where to attend.
    """
    config = model.config
    attention = model.model.layers[-1].self_attn
    values = attention.v_proj.weight.view(config.num_key_value_heads, attention.head_dim, -1)
    heads = values.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 0)
    attention.o_proj.weight.copy_(heads.flatten(0, 1).T)
    model.lm_head.weight.copy_(0.2 * model.model.embed_tokens.weight)


def encode(tokenizer: PreTrainedTokenizerFast, dialogues: list[list[dict[str, str]]]) -> list[Dialogue]:
    """Tokenize dialogues. Only the responses, end tokens included, have labels."""
    pieces = [
        (index, text, learned)
        for index, turns in enumerate(dialogues)
        for turn in turns
        for text, learned in (
            (f"{START}{turn['role']}\n", False),
            (f"{turn['content']}{END}", turn["role"] == "assistant"),
            ("\n", False),
        )
    ]
    encoded = [Dialogue([], []) for _ in dialogues]
    for (index, _, learned), ids in zip(pieces, tokenizer([text for _, text, _ in pieces])["input_ids"], strict=True):
        encoded[index].ids.extend(ids)
        encoded[index].labels.extend(ids if learned else [IGNORE] * len(ids))
    return encoded


def pretrain_on_answers(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, schedule: Schedule, paragraphs: int, tokens: int
) -> None:
    """Train on the responses of short contexts, in batches of about `tokens` tokens."""

    def draw(length: int, step: int, _: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        count = max(4, tokens // (70 * max(1, length // 2)))
        seed = schedule.seed * 1_000_003 + step
        dialogues = encode(tokenizer, list(generate_dialogues(count, seed, length, 2, questions=length)))
        longest = max(len(dialogue.ids) for dialogue in dialogues)
        ids = [d.ids + [tokenizer.pad_token_id] * (longest - len(d.ids)) for d in dialogues]
        labels = [d.labels + [IGNORE] * (longest - len(d.labels)) for d in dialogues]
        return torch.tensor(ids), torch.tensor(labels)

    curriculum = Curriculum(
        SHORTEST, paragraphs, enough=0.98, afterwards=0.9, growth=lambda length: 2, counted=slice(None)
    )
    with Progress() as progress:
        task = progress.add_task("pre-training", total=schedule.steps)
        pretrain(
            model,
            schedule,
            curriculum,
            draw,
            lambda step, state: progress.update(task, completed=step, description=state),
        )


def make_pairs(out: Path, size: int, sampling: Sampling) -> None:
    """Sample answers on short training contexts, and keep a right and a wrong answer of each question.

    Pairs whose right answer cites facts that the context does not state are removed.

    Args:
        out: gzipped JSON lines with the number of the question, the right answer and the wrong answer.
        size: number of pairs before the removal.
        sampling: model and sampling settings.
    """
    with tempfile.TemporaryDirectory() as scratch:
        contexts, triplets = Path(scratch) / "contexts.jsonl", Path(scratch) / "triplets.jsonl"
        rows = generate_contexts(4 * size, seed=0)
        contexts.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sample_pairs(PairSettings(contexts, triplets, on="short", size=size), sampling, HuggingFaceBackend)
        found = [json.loads(line) for line in triplets.read_text().splitlines()]
    pairs = [
        {"number": int(row["id"].rpartition("_")[2]), "chosen": row["chosen"], "rejected": row["rejected"]}
        for row in found
    ]
    pairs = [pair for pair in pairs if pair["chosen"].strip() == right_response(pair["number"], seed=0)]
    text = "".join(json.dumps(pair) + "\n" for pair in pairs)
    out.write_bytes(gzip.compress(text.encode(), mtime=0))


def make(arguments: argparse.Namespace) -> tuple[Path, dict[str, Any]]:
    """Make the tokenizer, train, sample and save.

    Args:
        arguments: options of ``tools/make_tiny_model.py``.

    Returns:
        The file of the pairs, and a summary: bytes written and seconds.
    """
    torch.set_num_threads(1)  # the result then does not depend on the number of cores
    began = time.monotonic()
    if not arguments.pairs_only:
        tokenizer = make_tokenizer(arguments.vocabulary, arguments.seed)
        model = make_model(tokenizer, arguments.layers, arguments.width, arguments.seed)
        schedule = Schedule(arguments.steps, arguments.learning_rate, warm_up=50, decay=1.0, seed=arguments.seed + 1)
        pretrain_on_answers(model, tokenizer, schedule, arguments.paragraphs, arguments.tokens)
        model.save_pretrained(arguments.out)
        tokenizer.save_pretrained(arguments.out)
    pairs = arguments.out.with_name(f"{arguments.out.name}_pairs.jsonl.gz")
    sampling = Sampling(
        "hf", str(arguments.out), arguments.samples, arguments.temperature, max_new_tokens=48, seed=arguments.seed
    )
    make_pairs(pairs, arguments.pairs, sampling)
    summary = {
        "bytes": sum(path.stat().st_size for path in (*arguments.out.iterdir(), pairs)),
        "seconds": round(time.monotonic() - began, 1),
    }
    return pairs, summary
