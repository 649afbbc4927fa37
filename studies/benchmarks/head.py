"""Memory of the language-model head without a model: full logits, all positions in chunks, response positions only."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from solopo_nemo.runtime import cli
from solopo_nemo.runtime.output import atomic_text
from studies.benchmarks.spec import GIB, Spec
from studies.pool import run_measured
from studies.results import machine, versions

HEADS = ("full", "chunked", "response_only")
"""``full``: Megatron's output layer and vocabulary-parallel cross-entropy. ``chunked``: this project's head on all
positions. ``response_only``: this project's head on the response positions, as in training."""


@dataclass(frozen=True)
class HeadSpec(Spec):
    """One forward and backward pass of a head.

    Attributes:
        head: one of :data:`HEADS`.
        long, response: tokens of the prompt and the response.
        hidden, vocabulary: hidden size and vocabulary size.
        row_chunk: positions in a chunk.
        threads: OpenMP threads.
    """

    head: str
    long: int
    response: int = 128
    hidden: int = 128
    vocabulary: int = 152064
    row_chunk: int = 512
    threads: int = 2

    def label(self) -> str:
        """A short description for messages."""
        return f"{self.head} head at {self.long:,} tokens"

    @property
    def logits_bytes(self) -> int:
        """Size of the fp32 logits of all positions."""
        return (self.long + self.response) * self.vocabulary * 4


def measure_head(spec: HeadSpec, work: Path) -> dict[str, Any]:
    """Run a specification once, in a new process.

    Returns:
        JSON data: ``seconds`` of each pass, and ``peak_bytes`` of the last pass above the hidden states, the weight and
        its gradient. The gradient of the hidden states, which is equal for all heads, is not computed. If the full
        logits and their gradient do not fit into free memory, the data have ``skipped`` instead.

    Raises:
        MeasurementError: the process failed.
    """
    common = {"spec": spec.as_json(), "machine": machine(), "versions": versions()}
    if spec.head == "full" and 3 * spec.logits_bytes > psutil.virtual_memory().available:
        return common | {"skipped": f"logits of {spec.logits_bytes / GIB:.0f} GiB and their gradient do not fit"}
    out = work / f"head-{spec.key()}-{os.getpid()}.json"
    command = [sys.executable, "-m", "studies.benchmarks.head", json.dumps(spec.as_json()), str(out)]
    run_measured(command, spec.threads, out.with_suffix(".log"), spec.label())
    out.with_suffix(".log").unlink()
    measured = json.loads(out.read_text())
    out.unlink()
    return common | measured


def _pass(spec: HeadSpec) -> tuple[Callable[[], None], list[Any]]:
    """The forward and backward pass of a head, and the tensors that exist before it."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import (
        ColumnParallelLinear,
        model_parallel_cuda_manual_seed,
        vocab_parallel_cross_entropy,
    )
    from megatron.core.transformer.transformer_config import TransformerConfig

    from solopo_nemo.core import device
    from solopo_nemo.core.head import ResponseHead

    device.prepare_process()
    backend = "nccl" if device.cuda() else "gloo"
    dist.init_process_group(backend, rank=0, world_size=1, store=dist.HashStore())
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(1)
    config = TransformerConfig(num_layers=1, hidden_size=spec.hidden, num_attention_heads=1)
    device.configure(config)
    stock = ColumnParallelLinear(
        spec.hidden,
        spec.vocabulary,
        config=config,
        init_method=torch.nn.init.normal_,
        bias=False,
        gather_output=False,
    )
    head = ResponseHead.from_output_layer(stock, spec.row_chunk)
    where = torch.cuda.current_device()
    positions = spec.long + spec.response
    hidden = torch.randn(positions, 1, spec.hidden, device=where)
    labels = torch.randint(0, spec.vocabulary, (positions,), device=where)
    first = spec.long if spec.head == "response_only" else 0
    rows = torch.arange(first, positions, device=where)

    def own() -> None:
        with head.scoring(rows, labels[rows]):
            head(hidden)[0][-spec.response :].sum().backward()

    def full() -> None:
        logits, _ = stock(hidden)
        vocab_parallel_cross_entropy(logits, labels[:, None])[-spec.response :].sum().backward()

    return full if spec.head == "full" else own, [hidden, stock.weight]


def measure_here(spec: HeadSpec) -> dict[str, Any]:
    """Measure in this process: a warm-up pass that allocates gradients and pools, and a measured pass."""
    from studies.benchmarks.memory import PeakMemory

    run, there = _pass(spec)
    memory, seconds = PeakMemory(), []
    for last in (False, True):
        if last:
            memory.start(there, ())
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return {"seconds": seconds, "peak_bytes": [memory.peak()], "threads": spec.threads}


def main() -> None:
    """``python -m studies.benchmarks.head SPEC OUT``."""
    measured = measure_here(HeadSpec(**json.loads(sys.argv[1])))
    with atomic_text(Path(sys.argv[2])) as stream:
        stream.write(json.dumps(measured))


if __name__ == "__main__":
    cli.run(main)
