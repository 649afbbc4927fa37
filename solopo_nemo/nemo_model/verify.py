"""Compares the fp32 logits of a converted model with those of transformers' model of the same files.

Megatron runs as in training: the sequences are packed as one THD micro-batch, and this project's own layers compute.
Memory: one model at a time, in the dtype of its files; embedding, head and one layer at a time are fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from solopo_nemo.families.adapter import by_path, read_adapter
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.isolated import Progress

TOLERANCE = 1e-4
"""Largest allowed difference of two logits, relative to the largest logit."""
RANDOM_LENGTHS = (1, 61, 257)
TEXT = (
    "In 1969, the crew of Apollo 11 (Armstrong, Collins and Aldrin) flew 384,400 km to the Moon. "
    "Question: who stayed in orbit? Answer: Michael Collins.\n\n"
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # in m²\n\n"
    "Die Straße war naß; «¿Qué hora es?», preguntó él. 北京的冬天很冷。 Ответ: 42% — да! 🚀\n"
)
Sequences = dict[str, list[list[int]]]
"""Token ids by kind of input."""
Logits = dict[str, list[torch.Tensor]]


class LogitsDifferError(UserError):
    """The logits of a converted model differ from those of the original. The conversion is discarded."""


def probes(tokenizer: Any, vocabulary: int) -> Sequences:
    """The token ids of the comparison: ``random`` ids of the whole vocabulary, and a tokenized ``text``.

    Args:
        tokenizer: transformers tokenizer.
        vocabulary: number of token ids.
    """
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in RANDOM_LENGTHS]
    text = [i for i in tokenizer(TEXT)["input_ids"] if i < vocabulary]
    return {"random": ids, "text": [text, text + text]}


@contextmanager
def _in_fp32(model: torch.nn.Module, layers: Iterable[torch.nn.Module], ran: Callable[[], None]) -> Iterator[None]:
    """Computes in fp32 inside the block: a layer's parameters are fp32 while it runs, all other parameters always.

    Args:
        model: the model.
        layers: its transformer layers.
        ran: called after each layer.
    """

    def cast(parameters: Iterable[torch.nn.Parameter], dtype: torch.dtype | None = None) -> None:
        for parameter in parameters:
            parameter.data = parameter.data.to(dtype or own[parameter])

    layers = list(layers)
    own, in_layers = {p: p.dtype for p in model.parameters()}, {p for layer in layers for p in layer.parameters()}
    outside = [p for p in model.parameters() if p not in in_layers]
    cast(outside, torch.float32)

    def after(layer: torch.nn.Module, *_: Any) -> None:
        cast(layer.parameters())
        ran()

    with torch.no_grad(), ExitStack() as stack:
        stack.callback(cast, outside)
        for layer in layers:
            stack.enter_context(layer.register_forward_pre_hook(lambda m, _: cast(m.parameters(), torch.float32)))
            stack.enter_context(layer.register_forward_hook(after))
        yield


def transformers_logits(
    folder: Path,
    description: ModelDescription,
    dtype: torch.dtype,
    sequences: Sequences,
    progress: Progress,
    trust_remote_code: bool,
) -> Logits:
    """The logits of transformers' model of a folder, fp32 ``[tokens, vocabulary]``. Each sequence runs alone.

    The configuration comes from ``description``, so that a fault in reading ``config.json`` shows as a difference.

    Args:
        folder: Hugging Face folder.
        description: its description.
        dtype: dtype of the weights in memory.
        sequences: token ids by kind of input.
        progress: shows the progress.
        trust_remote_code: run Python code that the folder contains.
    """
    from transformers import AutoModelForCausalLM

    config = description.transformers_config(description.source.get("auto_map") if trust_remote_code else None)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=dtype, local_files_only=True, trust_remote_code=trust_remote_code
    )
    return _logits_of(model, sequences, progress)


def adapted_logits(
    state: dict[str, torch.Tensor],
    adapter: Path,
    description: ModelDescription,
    dtype: torch.dtype,
    sequences: Sequences,
    progress: Progress,
) -> Logits:
    """The logits of transformers' model with adapters: ``W x + alpha / rank * B A x`` in each target.

    Args:
        state: base weights by Hugging Face name.
        adapter: folder of :mod:`solopo_nemo.families.adapter`.
        description, dtype, sequences, progress: see :func:`transformers_logits`.
    """
    import transformers

    found, kind = read_adapter(adapter, description), getattr(transformers, description.family.architecture)
    model = kind.from_pretrained(None, config=description.transformers_config(), state_dict=state, dtype=dtype)

    def adapted(a: torch.Tensor, b: torch.Tensor) -> Any:
        return lambda _, inputs, out: out + found.alpha / found.rank * (inputs[0] @ a.t() @ b.t())

    for layer in range(description.num_hidden_layers):
        for name in found.targets:
            halves = (by_path(description, layer, name, found.tensor(layer, name, half).float()) for half in "AB")
            for (path, a), (_, b) in zip(*halves, strict=True):
                model.get_submodule(path).register_forward_hook(adapted(a, b))
    return _logits_of(model, sequences, progress)


def _logits_of(model: Any, sequences: Sequences, progress: Progress) -> Logits:
    layers = model.model.layers
    ran = progress("logits of transformers", len(layers) * sum(len(s) for s in sequences.values()))
    with _in_fp32(model.eval(), layers, ran):
        return {kind: [model(torch.tensor([i])).logits[0] for i in ids] for kind, ids in sequences.items()}


def megatron_logits(module: Any, sequences: Sequences, progress: Progress) -> Logits:
    """The logits of a Megatron model on one rank, fp32 ``[tokens, vocabulary]``. Each kind of input is packed."""
    layers = module.decoder.layers
    ran = progress("logits of Megatron", len(layers) * len(sequences))
    with _in_fp32(module, layers, ran):
        return {kind: packed_logits(module, ids) for kind, ids in sequences.items()}


def packed_logits(module: Any, sequences: list[list[int]]) -> list[torch.Tensor]:
    """The logits ``[tokens, vocabulary]`` of each of some sequences, packed as one THD micro-batch on one rank."""
    from solopo_nemo.core.layers.attention import PackedSequences

    lengths = [len(ids) for ids in sequences]
    packed = PackedSequences.of(lengths, torch.tensor([0, *lengths]).cumsum(0).int())
    tokens = torch.tensor([[i for ids in sequences for i in ids]])
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return list(module(tokens, positions, None, packed_seq_params=packed)[0].split(lengths))


def largest_difference(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """The largest difference of two logits, relative to the largest logit of ``want``; NaN if one of them is NaN."""
    differences = torch.stack([(a - b).abs().max() for a, b in zip(got, want, strict=True)])  # Python's max drops NaN
    return float(differences.max() / torch.stack([x.abs().max() for x in want]).max())


def compare(got: Logits, want: Logits, what: str) -> dict[str, float]:
    """The relative difference of two models' logits, by kind of input.

    Args:
        got: logits of Megatron's model.
        want: logits of transformers' model.
        what: the conversion in words, for messages.

    Raises:
        UserError: the logits of transformers are not finite.
        LogitsDifferError: a difference is above ``TOLERANCE`` or NaN.
    """
    if not all(bool(x.isfinite().all()) for logits in want.values() for x in logits):
        raise UserError(f"{what}: the model's logits in transformers are not finite: the weights hold NaN or infinity")
    found = {kind: largest_difference(got[kind], want[kind]) for kind in want}
    if not all(value <= TOLERANCE for value in found.values()):
        figures = ", ".join(f"{value:.1e} on {kind} tokens" for kind, value in found.items())
        raise LogitsDifferError(
            f"{what}: the logits differ from those of transformers by {figures} of the largest logit, in fp32; up to "
            f"{TOLERANCE:.0e} is rounding. The result was not kept: please report this with the model's config.json"
        )
    return found
