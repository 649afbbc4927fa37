"""``dry_run=true``: traces one optimizer step of a recipe at full size, without weights and without a GPU."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.console import Console

from solopo_nemo.config.schema import RunConfig, load_config
from solopo_nemo.config.world import check_model
from solopo_nemo.planning import CPU, GPU, Machine, advise, load_shape
from solopo_nemo.runtime import cli, device, logs
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.json_files import write_json
from solopo_nemo.runtime.output import check_writable
from solopo_nemo.runtime.units import token_count
from solopo_nemo.training.checks import EVERYWHERE, check_all
from solopo_nemo.training.failures.memory_advice import of_sample
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.start import Start

if TYPE_CHECKING:
    from solopo_nemo.families.description import ModelDescription

SHORT, RESPONSE = 1024, 128
"""Tokens of the short prompt and of each response if ``dry_run.length`` is given."""


def dry_run_recipe(recipe: str, arguments: Sequence[str]) -> int:
    """Traces a recipe, prints the result and writes it to ``output_dir/dry_run.json``.

    Args:
        recipe: name of the recipe.
        arguments: command-line overrides, ``dry_run=true`` among them.

    Returns:
        0 if the run fits into the memory, else 2.

    Raises:
        UserError: the run would refuse the configuration or fail with it.
    """
    # before the first call to CUDA: fake tensors are on the CPU, also on a machine with GPUs
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    config = load_config(recipe, arguments)
    on_gpu = config.dry_run.device == "cuda"
    world = config.dry_run.gpus or config.parallel.model_ranks * config.parallel.least_data
    check_all(Start(config, world, on_gpu), EVERYWHERE)
    model = load_shape(config.model.init, config.model.rope_scaling)
    check_model(config, model, on_gpu)
    check_writable(config.output, "output_dir", make=True)
    machine = Machine(world, min(world, Machine().gpus_per_node), _memory(config, world))
    _say("starting")
    with logs.quiet_imports():
        from solopo_nemo.core.device import prepare_process

        prepare_process()
        lengths = _lengths(config, model, world, on_gpu)
        from solopo_nemo.planning.dry_run.report import dry_run, print_dry_run

        found = dry_run(config, model, lengths, world, machine.memory_gib, _say)
    print_dry_run(found, Console(highlight=False, markup=False))
    write_json(Paths(config.output).dry_run, found.as_json())
    if found.fits:
        return 0
    where = GPU if on_gpu else CPU
    print(f"by the planner: {advise(config, model, of_sample(lengths), machine, where, found.peak_gib)}")
    return cli.EXIT_USER_ERROR


def _say(text: str) -> None:
    print(f"dry run: {text}", file=sys.stderr)


def _memory(config: RunConfig, world: int) -> float:
    """GiB of each device: ``dry_run.memory``, else 80 for a GPU, else a rank's share of this machine's memory."""
    if config.dry_run.memory is not None:
        return config.dry_run.memory
    return Machine().memory_gib if config.dry_run.device == "cuda" else device.memory_gib() / world


def _lengths(config: RunConfig, model: ModelDescription, world: int, on_gpu: bool) -> dict[str, int]:
    """Tokens of the sample to trace, by column: of ``dry_run.length``, or the costliest sample of the data."""
    if config.dry_run.length is not None:
        try:
            long = token_count(config.dry_run.length)
        except ValueError:
            long = 0
        if long < 1:
            raise UserError(f"dry_run.length={config.dry_run.length}: give a number of tokens, such as 131072 or 128K")
        lengths = {"prompt_short": min(SHORT, long), "prompt_long": long, "chosen": RESPONSE, "rejected": RESPONSE}
        if long + RESPONSE > model.window:
            raise UserError(
                f"dry_run.length={config.dry_run.length}: prompt and response ({RESPONSE} tokens) are longer than the "
                f"model's window of {model.window} tokens; model.rope_scaling extends it: "
                "'model.rope_scaling={type: yarn, factor: 4.0}'"
            )
        return lengths
    from solopo_nemo.training.datamodule import sample_costs

    with tempfile.TemporaryDirectory(prefix="solopo-dry-run-") as scratch:
        start = Start(config, world, on_gpu, Path(scratch))
        samples = start.prepared.dataset
        costs = sample_costs(samples, config.build_objective().sequences, model)
        row = samples[int(np.argmax(costs))]
        return {name: len(tokens) for name, tokens in row.items() if name != "id" and len(tokens)}
