"""A converted model against transformers: the same logits, in fp32, from the files on disk.

Megatron runs as in training: the sequences packed as one THD micro-batch, through this project's own layers (which
have the parameter names of Transformer Engine's). Each model is in memory alone, in the type of its files; one layer at
a time is fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from solopo_nemo.families.adapter import read_adapter
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.family import MODULES
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.isolated import Progress

TOLERANCE = 1e-4
"""Largest difference of two logits, as a part of the largest logit."""
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
    """A converted model computes something else than the original: it cannot be taken."""


def probes(tokenizer: Any, vocabulary: int) -> Sequences:
    """Token ids to compare on: ``random`` over the whole vocabulary, and real ``text``."""
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in RANDOM_LENGTHS]
    text = [i for i in tokenizer(TEXT)["input_ids"] if i < vocabulary]
    return {"random": ids, "text": [text, text + text]}


@contextmanager
def _in_fp32(model: torch.nn.Module, layers: Iterable[torch.nn.Module], ran: Callable[[], None]) -> Iterator[None]:
    """Compute in fp32: a layer's parameters are fp32 while it runs, those of embedding and head all the time."""

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

    handles = [layer.register_forward_pre_hook(lambda m, _: cast(m.parameters(), torch.float32)) for layer in layers]
    handles += [layer.register_forward_hook(after) for layer in layers]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        cast(outside)


def transformers_logits(
    folder: Path,
    description: ModelDescription,
    dtype: torch.dtype,
    sequences: Sequences,
    progress: Progress,
    trust_remote_code: bool,
) -> Logits:
    """Logits of transformers' model of a folder, each sequence run alone, fp32 ``[tokens, vocabulary]``.

    The configuration is made of ``description``: a fault in reading the file must not be hidden by the
    same fault in transformers.
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
    """As :func:`transformers_logits`, of weights in memory with the adapters of a folder, by peft's formula.

    Args:
        state: weights by Hugging Face name.
        adapter: folder of :mod:`solopo_nemo.families.adapter`.
    """
    import transformers

    found, kind = read_adapter(adapter, description), getattr(transformers, description.family.architecture)
    model = kind.from_pretrained(None, config=description.transformers_config(), state_dict=state, dtype=dtype)

    def adapted(a: torch.Tensor, b: torch.Tensor) -> Any:
        return lambda _, inputs, out: out + found.alpha / found.rank * (inputs[0] @ a.t() @ b.t())

    for number, layer in enumerate(model.model.layers):
        for name in found.targets:
            halves = (found.tensor(number, name, half).float() for half in "AB")
            layer.get_submodule(MODULES[name]).register_forward_hook(adapted(*halves))
    return _logits_of(model, sequences, progress)


def _logits_of(model: Any, sequences: Sequences, progress: Progress) -> Logits:
    layers = model.model.layers
    ran = progress("logits of transformers", len(layers) * sum(len(s) for s in sequences.values()))
    with _in_fp32(model.eval(), layers, ran):
        return {kind: [model(torch.tensor([i])).logits[0] for i in ids] for kind, ids in sequences.items()}


def megatron_logits(module: Any, sequences: Sequences, progress: Progress) -> Logits:
    """Logits of a Megatron model of one rank, the sequences packed by kind, fp32 ``[tokens, vocabulary]``."""
    layers = module.decoder.layers
    ran = progress("logits of Megatron", len(layers) * len(sequences))
    with _in_fp32(module, layers, ran):
        return {kind: packed_logits(module, ids) for kind, ids in sequences.items()}


def packed_logits(module: Any, sequences: list[list[int]]) -> list[torch.Tensor]:
    """Logits of a Megatron model of one rank for sequences packed as one THD micro-batch."""
    from solopo_nemo.core.layers.attention import PackedSequences

    lengths = [len(ids) for ids in sequences]
    packed = PackedSequences.of(lengths, torch.tensor([0, *lengths]).cumsum(0).int())
    tokens = torch.tensor([[i for ids in sequences for i in ids]])
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    return list(module(tokens, positions, None, packed_seq_params=packed)[0].split(lengths))


def largest_difference(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    """Largest difference of two logits, as a part of the largest logit of ``want``."""
    differences = torch.stack([(a - b).abs().max() for a, b in zip(got, want, strict=True)])  # Python's max drops NaN
    return float(differences.max() / torch.stack([x.abs().max() for x in want]).max())


def compare(got: Logits, want: Logits, what: str) -> dict[str, float]:
    """The difference by kind of input.

    Raises:
        UserError: transformers' own logits are no finite numbers.
        LogitsDifferError: one is above ``TOLERANCE``, or no number.
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
