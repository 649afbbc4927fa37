"""Traces of tiny models, read as formulas: ``solopo_nemo/assets/traced_steps.json``, from which the planner computes.

A traced model has three layers, and sizes that share no prime factor. So the bytes of every tensor of the trace are a
product of sizes in one way only. For example, 2 * 4010 * 1016 bytes in bf16 are ``T * h * e``. The second layer stands
for all layers between the first and the last: what it saves for backward counts ``M`` times.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from fractions import Fraction
from functools import cache
from itertools import product
from random import Random
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from solopo_nemo.config.schema import load_config
from solopo_nemo.planning.dry_run.tracker import Storage, Tracker
from solopo_nemo.planning.parameters import MLP
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.planning.traced import PARTS, STEPS, SYMBOLS, Kind, powers_of

TENSOR, CONTEXT, EXPERT, SPLIT = 5, 3, 2, 7
"""Ranks by which a size is divided. Experts without sequence parallelism are those of one tensor-parallel rank."""
RESPONSE = 191
SIZES = {"h": 8 * 127, "f": 1013, "v": 257, "d": 8 * 17, "g": 3 * 43, "T": 4010, "R": 3 * RESPONSE}
SIZES |= {"C": 409, "B": 419, "W": 211, "n": 11 * SIZES["g"], "q": 29, "m": 8 * 131, "x": 37, "r": 8 * 19}
LONGEST = {1: 2670, CONTEXT: 9210}
"""``S`` by context-parallel size; the other two sequences of a sample share what ``T`` leaves."""
PRIMES = {"h": 127, "f": 1013, "v": 257, "d": 17, "T": 401, "R": 191, "C": 409, "B": 419, "W": 211}
PRIMES |= {"q": 29, "m": 131, "x": 37, "r": 19}
REST = (23, 41, 47, 67, 239, 383)
"""Factors of what is left of a division into blocks, and of the two shorter sequences: each is beside a larger one."""
SMALL = 2**11
"""Bytes below which a tensor does not count: lengths, losses, statistics."""
SAMPLES, NEAR = 3000, 0.005
"""Sizes for which the highest moments of a step are kept, and by which share a moment that is kept may be lower."""
NORMS = "finalize_model_grads"
"""Where the gradients of norms, a few rows, are summed over the tensor-parallel ranks."""
STATE = {"weights", "gradients", "optimizer", "reference"}
Vector = dict[tuple[str, str], Fraction]
"""Coefficient by part and term."""


def all_kinds() -> Iterator[Kind]:
    """Every kind of step that is traced."""
    devices, recomputes, flags = ("gpu", "cpu"), ("none", "selective", "full"), (False, True)
    yield from (Kind(*values) for values in product(devices, recomputes, ("", "p2p", "a2a"), flags, flags))
    yield from (Kind(*values, True, behind=True) for values in product(devices, recomputes, ("", "a2a"), flags))
    for sequence, *more in ((False,), (True,), (True, True), (False, False, True), (True, False, True)):
        values = product(recomputes, ("", "p2p", "a2a"), (sequence,), flags)
        yield from (Kind("gpu", *value, False, True, *more) for value in values)


def trace(kind: Kind) -> Tracker:
    """Trace a step of a kind, with sizes that can be read."""
    from solopo_nemo.core import head
    from solopo_nemo.core.layers import blockwise
    from solopo_nemo.planning.dry_run import engine
    from solopo_nemo.planning.dry_run.rank import trace_rank

    context, tensor = CONTEXT if kind.mode else 1, TENSOR if kind.sequence or not kind.experts else 1
    expert, split = EXPERT if kind.experts else 1, SPLIT if kind.split else 1
    shape: dict[str, Any] = {
        "model_type": "gemma3_text" if kind.behind else "qwen3" if kind.heads else "qwen2",
        "hidden_size": SIZES["h"],
        "intermediate_size": SIZES["f"] * tensor,
        "num_hidden_layers": 3,
        "num_attention_heads": SIZES["n"] * tensor,
        "num_key_value_heads": SIZES["g"] * tensor,
        "head_dim": SIZES["d"],
        "vocab_size": SIZES["v"] * tensor,
        "max_position_embeddings": 2**20,
        **({"sliding_window": 2**20} if kind.behind else {}),
        "tie_word_embeddings": False,
    }
    if kind.experts:
        more = (
            ("qwen3_moe", "num_experts", "moe_intermediate_size"),
            ("mixtral", "num_local_experts", "intermediate_size"),
        )
        family, count, size = more[not kind.heads]
        shape |= {"model_type": family, count: SIZES["x"] * EXPERT, size: SIZES["m"] * split}
        shape |= {"num_experts_per_tok": SIZES["q"], **({"norm_topk_prob": True} if kind.heads else {})}
    overrides = [
        "dry_run=true",
        f"dry_run.device={'cuda' if kind.device == 'gpu' else 'cpu'}",
        f"model.recompute={kind.recompute}",
        f"model.logits_chunk_size={SIZES['C']}",
        "trainer.micro_batch=1",
        f"trainer.global_batch={expert * split}",
        f"parallel.expert={expert}",
        f"parallel.tensor={tensor}",
        f"parallel.sequence={str(kind.sequence).lower()}",
        f"parallel.context={context}",
        f"parallel.cp_comm_type={kind.mode or 'p2p'}",
    ]
    if kind.adapters:
        overrides += ["peft=lora", f"peft.rank={SIZES['r']}", f"peft.targets=[{','.join(sorted(MLP))}]"]
        overrides += ["objective.reference=cached"]
    long, short = LONGEST[context], (SIZES["T"] * context - LONGEST[context]) // 2
    lengths = {"prompt_long": long - RESPONSE + 1, "prompt_short": short - RESPONSE + 1}
    lengths |= {"chosen": RESPONSE, "rejected": RESPONSE}
    world, tracker = tensor * context * expert * split, Tracker(places_from=0)
    config = load_config("solo_dpo", overrides)
    if kind.split:  # a prime of its own, which the check of a layout refuses
        config.parallel.expert_tensor = SPLIT
    with ExitStack() as stack:
        for module, names, symbol in (
            (blockwise, ("BLOCK", "GPU_BLOCK"), "B"),
            (head, ("VOCABULARY_TILE", "GPU_VOCABULARY_TILE"), "W"),
        ):
            for name in names:
                stack.enter_context(patch.object(module, name, SIZES[symbol]))
        stack.enter_context(patch.object(engine, "weight_shapes", lambda *_: frozenset()))  # ``F`` says it
        trace_rank(config, ModelShape.from_hf(shape), lengths, 0, world, tracker=tracker)
    return tracker


def write(progress: Callable[[str], None] = print) -> None:
    """Trace every kind of step anew and write the file. Each text is there once; a step names it by its place."""
    texts: dict[str | None, int] = {}

    def place(text: str | None) -> int | None:
        return texts.setdefault(text, len(texts)) if text else None

    steps = dict[str, Any]()
    for kind in all_kinds():
        progress(str(kind))
        found = read(kind, trace(kind))
        steps[str(kind)] = {
            "saved": place(found["saved"]),
            "outside": place(found["outside"]),
            "sent": {group: place(text) for group, text in found["sent"].items()},
            "moments": [[place(name), *(place(parts.get(part)) for part in PARTS)] for name, parts in found["moments"]],
        }
    lines = ",\n".join(f"{json.dumps(kind)}: {json.dumps(step)}" for kind, step in steps.items())
    every = ",\n".join(map(json.dumps, texts))
    STEPS.write_text(f'{{"texts": [\n{every}\n],\n"steps": {{\n{lines}\n}}}}\n')


def term_of(size: int, context: int) -> dict[str, Fraction] | None:
    """A number of elements as a product of sizes: coefficient by term.

    Returns:
        None for what is left of a division into blocks.

    Raises:
        ValueError: the number is no product of sizes.
    """
    if any(size % prime == 0 for prime in REST):
        return None
    left, names = Fraction(size), list[str]()
    for name, prime in PRIMES.items() | {("S", LONGEST[context] // 30)}:
        while left.numerator % prime == 0:
            left /= SIZES.get(name, LONGEST[context])
            names.append(name)
    if {"B", "h"} <= {*names} and "f" not in names:  # blocks of a norm, whose rows sequence parallelism divides
        names[names.index("B")] = "N"
    if "x" in names and not {"m", "r"} & {*names}:  # of the router, which knows all experts
        left /= EXPERT
        names[names.index("x")] = "X"
    wide, groups = left.numerator % 13 == 0, left.numerator % 43 == 0
    alternatives = [""]
    if groups:
        left /= SIZES["g"]
        heads = {"g": "n", "k": "a"}
        own = "k" if "d" in names else "g"
        if own == "k":
            names.remove("d")
        if wide:  # queries, keys and values
            left /= 13
            alternatives = [heads[own], own, own]
        elif left.numerator % 11 == 0:
            left /= 11
            alternatives = [heads[own]]
        else:
            alternatives = [own]
    for name, prime in (("t", TENSOR), ("c", context), ("u", SPLIT)):
        while prime > 1 and left.numerator % prime == 0:
            left, names = left / prime, [*names, name]
        while prime > 1 and left.denominator % prime == 0:
            left, names = left * prime, [*names, f"/{name}"]
    if left.numerator > 32 or left.denominator > 4:
        raise ValueError(f"{size}: {left} * {names} {alternatives}")
    found: dict[str, Fraction] = defaultdict(Fraction)
    order = "TSRCBNWxXqmhfakngdvrtcu"
    for other in alternatives:
        every = sorted([*names, other] if other else names, key=lambda name: (name[0] == "/", order.index(name[-1])))
        found["".join(name if name[0] == "/" else f"*{name}" for name in every).removeprefix("*")] += left
    return found


def read(kind: Kind, tracker: Tracker) -> dict[str, Any]:
    """The formulas of a traced step, as :class:`solopo_nemo.planning.traced.TracedStep` takes them."""
    context = CONTEXT if kind.mode else 1
    events = [event for event in tracker.events if event[1].kind not in STATE and event[2] != "optimizer"]
    events = [event for event in events if NORMS not in event[1].place]
    held = _held_at_the_third(events)
    many = {id(made) for made in held if made.layer == "layer 2"}
    own_dtype = "bfloat16" if kind.device == "gpu" else "float32"
    vectors: dict[int, Vector] = {}
    for size, made, _ in events:
        if size >= SMALL and id(made) not in vectors:
            vectors[id(made)] = _vector(made, context, own_dtype, "*M" * (id(made) in many))
    moments: dict[tuple[tuple[tuple[str, str], Fraction], ...], str] = {}
    now: Vector = defaultdict(Fraction)
    for size, made, _ in events:
        sign = 1 if size > 0 else -1
        for key, coefficient in vectors.get(id(made), {}).items():
            now[key] += sign * coefficient
            if not now[key]:
                del now[key]
        if size > 0:
            moments.setdefault(tuple(sorted(now.items())), _name(made))

    def sum_of(some: Iterable[Storage]) -> str:
        found = [_vector(made, context, own_dtype) for made in some if made.bytes >= SMALL]
        return _text(_summed(pair for vector in found for pair in vector.items()))

    return {
        "saved": sum_of(made for made in held if made.layer == "layer 2"),
        "outside": sum_of(made for made in held if not made.layer.startswith("layer")),
        "sent": _sent(tracker.transfers, kind, own_dtype),
        "moments": [[name, _by_part(vector)] for vector, name in _highest(moments, kind)],
    }


def _held_at_the_third(events: Iterable[tuple[int, Storage, str]]) -> list[Storage]:
    """What a micro-batch holds when the third layer begins its forward pass."""
    live: dict[int, Storage] = {}
    for size, made, _ in events:
        if size > 0 and made.layer == "layer 3":
            break
        if size > 0:
            live[id(made)] = made
        else:
            live.pop(id(made), None)
    return [*live.values()]


def _vector(made: Storage, context: int, own_dtype: str, flags: str = "") -> Vector:
    """A tensor's bytes as coefficients."""
    itemsize = getattr(torch, made.dtype).itemsize
    terms = term_of(made.bytes // itemsize, context) or {}
    flags = "*E" * ("engine.py" in made.place) + flags
    if own_dtype == "bfloat16" and made.kind == "temporaries" and any(map(_is_weight, terms)):  # on a GPU
        flags += "*F"
    flags, factor = (f"*e{flags}", 1) if made.dtype == own_dtype else (flags, itemsize)
    saved = PARTS[0] if made.layer.startswith("layer") else PARTS[1]
    part = {"activations": saved, "inputs": PARTS[2]}.get(made.kind, PARTS[3])
    return {(part, term + flags): coefficient * factor for term, coefficient in terms.items()}


def _is_weight(term: str) -> bool:
    """Whether a term is the size of a layer's weight."""
    names = {*re.findall(r"\w", term)}
    return "h" in names and bool(names & {*"fakm"}) and names <= {*"hfakmxtu"}


def _summed(vector: Iterable[tuple[tuple[str, str], Fraction]]) -> dict[str, Fraction]:
    """Coefficient by term."""
    found: dict[str, Fraction] = defaultdict(Fraction)
    for (_, term), coefficient in vector:
        found[term] += coefficient
    return found


def _highest(moments: Mapping[Any, str], kind: Kind) -> list[tuple[Any, str]]:
    """As few moments as say, for each of many sizes, what the highest holds."""
    sums = [_summed(key) for key in moments]
    terms = sorted({term for total in sums for term in total})
    factors = np.array([[float(total.get(term, 0)) for term in terms] for total in sums])
    powers = np.array([powers_of(term) for term in terms])
    samples = _samples(kind.sequence, kind.experts, kind.split)
    totals = np.array([factors @ np.prod(sizes**powers, axis=1) for sizes in samples])
    most = totals.max(axis=1)
    often = (totals == most[:, None]).sum(axis=0)
    kept = [int(index) for index in np.argsort(often, kind="stable") if often[index]]
    for index in tuple(kept):
        fewer = [other for other in kept if other != index]
        if fewer and (totals[:, fewer].max(axis=1) >= (1 - NEAR) * most).all():
            kept = fewer
    return [item for index, item in enumerate(moments.items()) if index in kept]


@cache
def _samples(sequence: bool, experts: bool, split: bool) -> list[Any]:
    """Sizes from those of an embedded model to those of the largest, in the order of ``SYMBOLS``."""
    random, of_experts, of_adapters, found = Random(0), Random(1), Random(2), []
    for _ in range(SAMPLES):
        t, c, e = (random.choice(sizes) for sizes in ((1, 2, 4, 8), (2, 3, 4, 8, 32), (2, 4)))
        t = max(t, 2) if split else 1 if experts and not sequence else t
        long, short, response = 2 ** random.uniform(8, 20), 2 ** random.uniform(6, 11), 2 ** random.uniform(2, 11)
        d, h, v = random.choice((32, 64, 128)), 2 ** random.randint(7, 13), 2 ** random.randint(11, 18) // t
        g = random.choice((1, 2, 4, 8))
        n = g * random.choice((1, 2, 4, 7, 8))
        T, rows = max((long + 2 * short) / c, response), 3 * response
        sizes = {"T": T, "S": long, "R": rows, "C": min(512, rows), "h": h, "d": d, "f": h * random.uniform(1, 6) / t}
        sizes |= {"a": n * d, "k": g * d, "n": n, "g": g, "v": v, "t": t, "c": c, "e": e, "B": min(512, T)}
        sizes |= {"W": min(4096, v), "M": random.randint(0, 30), "E": random.randint(0, 1)}
        sizes |= {"B": min(16384, T), "W": min(16384, v)} if e == 2 else {}
        count, u = of_experts.choice((8, 64, 128)), t if split else 1
        sizes |= {"q": of_experts.choice((2, 4, 8)), "X": count, "x": count // of_experts.choice((1, 2, 8)), "u": u}
        sizes["F"] = of_experts.randint(0, 1) * (1 - sizes["E"])
        sizes["m"] = h * of_experts.uniform(0.25, 3.5) / u
        sizes["r"] = of_adapters.choice((8, 16, 32, 64, 128))
        sizes["N"] = min(sizes["B"], T / t if sequence else T)
        found.append(np.array([sizes[symbol] for symbol in SYMBOLS], dtype=float))
    return found


def _text(formula: Mapping[str, Fraction]) -> str:
    return " + ".join(f"{float(size):.12g}*{term}" for term, size in sorted(formula.items()) if size)


def _by_part(vector: Iterable[tuple[tuple[str, str], Fraction]]) -> dict[str, str]:
    parts: dict[str, dict[str, Fraction]] = defaultdict(dict)
    for (part, term), coefficient in vector:
        parts[part][term] = coefficient
    return {part: _text(formula) for part, formula in parts.items()}


def _name(made: Storage) -> str:
    """Part of the model, direction, operation and file."""
    file = made.place.rsplit(":", 1)[0]
    own = file.startswith("core/layers") or "solopo_nemo" in file
    part = "layers"
    if made.layer in ("output_layer", "final norm") or file.endswith("core/head.py"):
        part = "head"
    elif made.layer == "embedding" or made.operation.startswith("embedding"):
        part = "embedding"
    return f"{part}, {'forward' if made.layer else 'backward'}: {made.operation}{f' in {file}' * own}"


def _sent(transfers: Iterable[tuple[str, int, str, int, float]], kind: Kind, own_dtype: str) -> dict[str, str]:
    """What is sent, by group, in units of ``(ranks - 1) / ranks``; that of the three layers with ``M``."""
    groups = ["tensor", "context", *["expert"] * kind.experts, *["expert tensor"] * kind.split]
    sums: dict[str, dict[str, Fraction]] = {group: defaultdict(Fraction) for group in groups}
    context = CONTEXT if kind.mode else 1
    for group, elements, dtype, ranks, share in transfers:
        group = "expert tensor" if ranks == SPLIT else group
        itemsize = getattr(torch, dtype).itemsize
        if group not in sums or (elements % PRIMES["T"] and elements % PRIMES["R"]):
            continue  # gradients of norms, and a few numbers of each position
        ring = (ranks - 1) / ranks
        times, more = Fraction(round(share / ring)), ""
        if share == 1:  # from neighbour to neighbour, as often as there are others
            times, more = Fraction(1, ranks - 1), "*c"
        elif times == ranks:  # the part that stays of a sum is 1 / ranks of it
            times, elements = Fraction(1), elements * ranks
        for term, coefficient in (term_of(elements, context) or {}).items():
            key = term + more + ("*e" if dtype == own_dtype else "")
            sums[group][key] += coefficient * times * (1 if dtype == own_dtype else itemsize)
    found = dict[str, str]()
    for group, terms in sums.items():
        of_layers = {term: size // 3 for term, size in terms.items() if term.startswith("T")}
        rest = {term: size - 3 * of_layers.get(term, 0) for term, size in terms.items()}
        total = {term: size + 2 * of_layers.get(term, 0) for term, size in rest.items()}
        found[group] = _text(total | {f"{term}*M": Fraction(size) for term, size in of_layers.items()})
    return found
