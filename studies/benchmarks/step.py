"""Training steps in new processes: this project's with the training of a recipe, the peer's with its trainer."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from solopo_nemo.families.description import ModelDescription
from solopo_nemo.runtime.errors import UserError
from studies.benchmarks.material import Material, ids_digest, make_checkpoint, make_material
from studies.benchmarks.peer import SCRIPT
from studies.benchmarks.spec import ADAPTERS, LORA, LORA_OFF, PAIR, PEERS, StepSpec
from studies.pool import run_measured
from studies.results import machine, versions

BETA = 0.1
OPTIMIZER = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.0, "clip_grad": 1.0}
"""AdamW with a constant learning rate, the same for all systems."""


def measure_step(spec: StepSpec, work: Path, peer_python: Path | None = None) -> dict[str, Any]:
    """Run a specification once.

    Args:
        spec: specification.
        work: folder for models, samples and scratch files. Keep it between measurements, because the conversion of a
            model is slow.
        peer_python: interpreter of the peer's environment, for the systems in :data:`PEERS`.

    Returns:
        JSON data. ``seconds``: time of each step on the slowest rank. ``peak_bytes``: peak of each rank above the
        loaded model (see :mod:`studies.benchmarks.memory`). ``baseline_bytes``: baseline of each rank. ``state_bytes``:
        bytes of weights, gradients and optimizer state of each rank, after the last step. ``losses``, ``logps``:
        values of each step. ``tokens``: tokens per step. ``threads``: threads per rank. ``digest``: hashes of the token
        ids. ``versions``, ``machine``.

    Raises:
        MeasurementError: a process failed.
    """
    material = make_material(spec, work)
    run = work / "runs" / f"{spec.key()}-{os.getpid()}"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    measured = _peer(spec, material, run, peer_python) if spec.system in PEERS else _own(spec, material, run)
    shutil.rmtree(run)
    return {"spec": spec.as_json(), **measured, "machine": machine()}


def check(spec: StepSpec) -> None:
    """Check a specification before a model is created.

    Raises:
        UserError: the system is unknown, or a length, the layout or an override is invalid.
    """
    from solopo_nemo.config.schema import load_config
    from solopo_nemo.config.world import check_model, check_world
    from solopo_nemo.runtime.paths import CONF

    recipes = sorted(p.stem for p in CONF.glob("*.yaml") if p.stem != "base")
    systems = {*PEERS, *(recipe + suffix for recipe in recipes for suffix in ("", LORA, LORA_OFF, PAIR))}
    if spec.system not in systems:
        suffixes = f"with {LORA} or {LORA_OFF} for adapters, {PAIR} for short pairs"
        known = f"{', '.join(recipes)} ({suffixes}), {', '.join(PEERS)}"
        raise UserError(f"--systems {spec.system}: must be one of {known}")
    for name in ("long", "short", "response", "steps", "threads"):
        if getattr(spec, name) < 1:
            raise UserError(f"--{name} {getattr(spec, name)}: must be at least 1")
    if spec.system in PEERS:
        if spec.ranks > 1 or spec.overrides or spec.recompute == "selective":
            raise UserError(f"{spec.system}: TRL runs on one rank here, without overrides and selective recompute")
        return
    nowhere = Path("nowhere")
    config = load_config(spec.recipe, overrides_of(spec, Material(nowhere, nowhere, nowhere, nowhere), nowhere))
    check_world(config, spec.ranks)
    check_model(config, ModelDescription.from_hf(spec.shape.hf_config()))


def overrides_of(spec: StepSpec, material: Material, output: Path) -> list[str]:
    """The recipe's command-line overrides for a specification."""
    return [
        f"output_dir={output}",
        "model=custom",
        f"model.init={material.checkpoint}",
        f"model.recompute={spec.recompute}",
        f"data.train={material.triplets}",
        f"parallel.tensor={spec.tensor}",
        f"parallel.sequence={str(spec.sequence).lower()}",
        f"parallel.context={spec.context}",
        f"parallel.cp_comm_type={spec.context_mode}",
        f"parallel.pipeline={spec.pipeline}",
        f"parallel.data={spec.data}",
        f"trainer.global_batch={spec.data}",
        "trainer.micro_batch=1",
        f"trainer.max_steps={spec.steps + 1}",  # the meter stops before the last step, which saves a checkpoint
        f"trainer.checkpoint_every={spec.steps + 1}",
        "trainer.resume=never",
        *(f"optim.{key}={value!r}" for key, value in OPTIMIZER.items()),
        f"optim.min_lr={OPTIMIZER['lr']!r}",
        "optim.warmup_ratio=0",
        "logger.tensorboard=false",
        "evaluation.name=none",
        *(_adapters(spec) if spec.lora else ()),
        *(["objective.align=none"] if spec.pair_alone else ()),
        *spec.overrides,
    ]


def _adapters(spec: StepSpec) -> list[str]:
    reference = "adapter_off" if spec.adapters_off else "cached"
    return [
        "peft=lora",
        *(f"peft.{key}={value}" for key, value in ADAPTERS.items()),
        f"objective.reference={reference}",
    ]


def _own(spec: StepSpec, material: Material, run: Path) -> dict[str, Any]:
    from solopo_nemo.config.schema import load_config
    from solopo_nemo.data.prepared import load_prepared
    from solopo_nemo.training.checks import EVERYWHERE, check_all, prepare
    from solopo_nemo.training.paths import Paths
    from solopo_nemo.training.report.rows import read_metrics
    from solopo_nemo.training.start import Start

    make_checkpoint(material)
    overrides = overrides_of(spec, material, run / "out")
    config = load_config(spec.recipe, overrides)
    start = Start(config, spec.ranks)
    check_all(start, EVERYWHERE)
    prepare(start)
    paths = Paths(config.output)
    request = {"recipe": spec.recipe, "overrides": overrides, "steps": spec.steps, "results": str(run)}
    (run / "request.json").write_text(json.dumps(request))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={spec.ranks}"]
    command = [*torchrun, "-m", "studies.benchmarks.rank", str(run / "request.json")]
    run_measured(command, spec.threads, run / "output.log", spec.label())
    ranks = [json.loads((run / f"rank-{i}.json").read_text()) for i in range(spec.ranks)]
    rows = read_metrics(paths.metrics)
    sample = load_prepared(paths.tokenized).dataset[0]
    return {
        "seconds": [max(values) for values in zip(*(r["seconds"] for r in ranks), strict=True)],
        "peak_bytes": [r["peak_bytes"] for r in ranks],
        "baseline_bytes": [r["baseline_bytes"] for r in ranks],
        "state_bytes": [r["state_bytes"] for r in ranks],
        "losses": [row["loss"] for row in rows],
        "logps": [{key: row[key] for key in sorted(row) if key.startswith("logps/")} for row in rows],
        "tokens": rows[0]["tokens"],
        "threads": ranks[0]["threads"],
        "digest": {name: ids_digest(ids) for name, ids in sample.items() if name != "id"},
        "versions": versions(),
    }


def _peer(spec: StepSpec, material: Material, run: Path, python: Path | None) -> dict[str, Any]:
    if python is None:
        raise ValueError(f"{spec.system} needs the interpreter of the peer's environment")
    request = {
        "model": str(material.hf),
        "data": str(material.ids),
        "setting": spec.recipe.removeprefix("trl_"),
        "lora": ADAPTERS if spec.lora else None,
        "adapters_off": spec.adapters_off,
        "steps": spec.steps,
        "recompute": spec.recompute,
        "beta": BETA,
        "output_dir": str(run / "out"),
        **OPTIMIZER,
    }
    (run / "request.json").write_text(json.dumps(request))
    command = [str(python), str(SCRIPT), str(run / "request.json"), str(run / "result.json")]
    run_measured(command, spec.threads, run / "output.log", spec.label())
    return json.loads((run / "result.json").read_text())
