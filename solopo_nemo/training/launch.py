"""Runs a recipe: command line, preparation, ranks, export and report, exit code."""

# Light imports only: Megatron's checkpoint writer starts a process that imports the main module of a rank again.
from __future__ import annotations

import json
import logging
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from solopo_nemo.config.schema import RunConfig, load_config, read_config, save_config
from solopo_nemo.config.world import local_world
from solopo_nemo.runtime import device, environment, logs
from solopo_nemo.runtime.cli import EXIT_RESUMABLE
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.isolated import Progress, run_isolated, unseen
from solopo_nemo.runtime.output import atomic_text
from solopo_nemo.runtime.signals import SIGNALS, Stopped, StopRequest, spare_helpers, stopping_at_once
from solopo_nemo.training.checkpoints.files import saved_checkpoints, step_of
from solopo_nemo.training.checkpoints.resume import changes
from solopo_nemo.training.checkpoints.selection import Selection
from solopo_nemo.training.output_lock import OutputLock
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.preparation import SharedPreparation

if TYPE_CHECKING:
    from solopo_nemo.training.start import Start

logger = logging.getLogger("solopo_nemo")

StartRanks = Callable[[int, Path], int]
"""Takes a number of ranks and an output folder, runs the ranks and returns their exit code."""


def run_recipe(
    recipe: str, arguments: Sequence[str], only_reference: bool = False, start: StartRanks | None = None
) -> int:
    """Runs a recipe: as the process that a user started, or as one rank of a job.

    Args:
        recipe: name of its YAML in ``conf/``.
        arguments: command-line overrides.
        only_reference: stop when the reference log-probabilities are complete.
        start: runs the ranks; by default they run this process's command again.

    Returns:
        The exit code: 0 after the last step; 75 if the run saved and stopped on request; 2 if ``check_only=true`` found
        problems or a dry run does not fit into memory; other numbers after a failure of the ranks.

    Raises:
        UserError: bad configuration or data.
        RunFault: the run had to end.
    """
    logs.show_own_messages(environment.rank())
    if _wants(arguments, "check_only"):
        from solopo_nemo.training.check import check_recipe

        return 0 if environment.rank() else check_recipe(recipe, arguments).show()
    if _wants(arguments, "dry_run", "dry_run.enabled"):
        from solopo_nemo.training.dry_run import dry_run_recipe

        return 0 if environment.rank() else dry_run_recipe(recipe, arguments)
    config = load_config(recipe, arguments)
    device.prepare_environment(config.parallel.tensor * config.parallel.context)
    try:
        if environment.started_as_rank():
            return _run_rank(config, only_reference)
        with stopping_at_once():
            return _run_here(config, only_reference, start)
    except Stopped as stop:
        logger.info("%s: stopped; the same command goes on from here", stop)
        return EXIT_RESUMABLE


def _wants(arguments: Sequence[str], *keys: str) -> bool:
    """Whether the arguments set one of ``keys`` to true. Hydra is not asked, as it may refuse other arguments."""
    given = [word.partition("=")[2].lower() for word in arguments if word.partition("=")[0] in keys]
    return given[-1:] == ["true"]


def _run_here(config: RunConfig, only_reference: bool, run_ranks: StartRanks | None) -> int:
    """The process that a user started: prepares the run, runs its ranks and finishes it."""
    from solopo_nemo.training.ranks import start_ranks

    if not only_reference and _finished(config):
        Console(markup=False).print(
            f"{config.output} holds this run, finished; trainer.resume=never starts it anew", highlight=False
        )
        _show(config)
        _push(config)
        return 0
    given = run_ranks and partial(run_ranks, local_world(config), config.output)
    early = only_reference or not _seems_trained(config)
    with nullcontext(given) if given else start_ranks(config, early) as ranks:
        from solopo_nemo.training.checks import EVERYWHERE, check_all  # seconds, while the ranks import NeMo
        from solopo_nemo.training.start import Start

        start = Start(config, local_world(config), only_reference=only_reference)
        check_all(start, EVERYWHERE)
        with OutputLock(config.output):
            shared = SharedPreparation(config.output)
            try:
                shared.prepare(lambda: _prepare_once(start))
                code = 0 if _trained(config) and not only_reference else ranks()
            finally:
                shared.outcome.unlink(missing_ok=True)
            if code == 0 and not only_reference:
                _finish(config)
    return code


def _run_rank(config: RunConfig, only_reference: bool) -> int:
    """One rank of a job. Rank 0 owns the output folder, unless the recipe started the ranks and owns it."""
    with ExitStack() as owned:

        def prepare() -> None:
            owned.enter_context(OutputLock(config.output))
            _prepare_once(start)

        if not environment.started_here():  # else the starter checks
            from solopo_nemo.training.checks import EVERYWHERE, check_all
            from solopo_nemo.training.start import Start

            start = Start(config, environment.world_size(), only_reference=only_reference)
            check_all(start, EVERYWHERE)
        return _run_rank_owning(config, only_reference, prepare)


def _run_rank_owning(config: RunConfig, only_reference: bool, prepare: Callable[[], None]) -> int:
    from solopo_nemo.training.ranks import import_nemo

    rank, here = environment.rank(), environment.started_here()
    stop = StopRequest()
    for number in SIGNALS:
        signal.signal(number, stop.note)  # until the process ends, as a launcher may send several signals
    spare_helpers()
    shared = SharedPreparation(config.output)
    if not here and rank == 0:
        shared.prepare(prepare)
    import_nemo()
    with logs.quiet_imports():
        from solopo_nemo.training.failures.supervise import supervised_fit
    if (here or rank) and (code := shared.wait()):
        return code
    if only_reference or not _trained(config):
        logs.to_file(config.output / "logs", rank)
        code = supervised_fit(config, stop, only_reference)
        if not here and rank == 0:
            shared.outcome.unlink()  # all ranks have read it, as they trained together
        if code:
            return code
    if not here and rank == 0 and not only_reference:
        with stopping_at_once():
            _finish(config)
    return 0


def _seems_trained(config: RunConfig) -> bool:
    """Whether an earlier start has saved its last step. The preparation may still refuse that run or its checkpoint."""
    paths = Paths(config.output)
    saved = saved_checkpoints(paths.checkpoints)
    if config.trainer.resume == "never" or not saved:
        return False
    with suppress(OSError, ValueError, KeyError, TypeError):
        return bool(step_of(saved[-1]) >= json.loads(paths.record.read_text(encoding="utf-8"))["steps"])
    return False


def _trained(config: RunConfig) -> bool:
    """Whether the checkpoint of the last step exists. Only export and report may be missing then."""
    from solopo_nemo.data.prepared import load_prepared
    from solopo_nemo.training.prepare import total_steps

    paths = Paths(config.output)
    steps = total_steps(config, len(load_prepared(paths.tokenized).dataset))
    return any(step_of(checkpoint) == steps for checkpoint in saved_checkpoints(paths.checkpoints))


def _prepare_once(start: Start) -> None:
    from solopo_nemo.training.checks import prepare

    prepare(start)
    save_config(start.config, start.paths.config)
    summary = start.prepared.summary
    logger.info("data: %d samples, %d dropped", summary["kept"], summary["dropped"])
    SharedPreparation(start.paths.output).remove_earlier()


def _finished(config: RunConfig) -> bool:
    paths = Paths(config.output)
    if config.trainer.resume == "never" or not (paths.report / "index.html").is_file() or not paths.config.is_file():
        return False
    from solopo_nemo.training.checkpoints.record import same_sources

    if config.peft.on and config.peft.merge and not paths.hf.is_dir():
        return False
    selection, earlier = Selection.read(paths), read_config(paths.config)
    if (selection.suite if selection else None) != config.trainer.select_best or changes(earlier, config):
        return False
    return same_sources(paths, earlier, config)


def _finish(config: RunConfig) -> None:
    """Exports, evaluates and reports after the last step, in one process."""
    from solopo_nemo.nemo_model.convert import export_hf
    from solopo_nemo.training.checkpoints.selection import choose_checkpoint, remove_others
    from solopo_nemo.training.publish import write_card
    from solopo_nemo.training.report.page import write_report

    paths = Paths(config.output)
    chosen = choose_checkpoint(config)
    if config.peft.on:
        from solopo_nemo.nemo_model.adapters import export_adapter

        logger.info("exporting the adapters of step %d to %s", step_of(chosen), paths.hf_adapter)
        export_adapter(chosen, paths.hf_adapter)
    with _whole_policy(config) as policy:
        if policy is not None:
            logger.info("exporting step %d to %s", step_of(chosen), policy)
            export_hf(chosen, policy, overwrite=True)
        _measure_accuracy(config, policy)
    write_card(config, step_of(chosen))
    remove_others(config, chosen)
    write_report(config)
    _show(config)
    _push(config)


def _push(config: RunConfig) -> None:
    if config.hub.push:
        from solopo_nemo.training.publish import push

        push(config)


@contextmanager
def _whole_policy(config: RunConfig) -> Iterator[Path | None]:
    """Yields the folder that the policy is exported to with all its weights.

    It is ``hf``. With adapters that are not merged it is a temporary folder for the evaluation, or ``None`` without an
    evaluation.
    """
    paths = Paths(config.output)
    if not config.peft.on or config.peft.merge:
        yield paths.hf
    elif not _measures_accuracy(config):
        yield None
    else:
        with tempfile.TemporaryDirectory(prefix=".merged-", dir=config.output) as folder:
            yield Path(folder) / "hf"


def _measures_accuracy(config: RunConfig) -> bool:
    name = config.evaluation.name
    return name == "builtin" or (name == "auto" and config.model.init == "builtin")


def _measure_accuracy(config: RunConfig, policy: Path | None) -> None:
    """Measures answer accuracy on the built-in questions, of the initial model and of the policy, each once.

    Both are measured after training, so that the first step does not wait for them.
    """
    from solopo_nemo.data.prepared import load_prepared

    paths, evaluation = Paths(config.output), config.evaluation
    if not _measures_accuracy(config):
        return
    rows = json.loads(paths.accuracy.read_text()) if paths.accuracy.is_file() else {}
    day = load_prepared(paths.tokenized).summary.get("date")
    for moment, find in (("before", lambda: _initial_model(config)), ("after", lambda: policy)):
        model = None if moment in rows else find()
        if model is None or not (model / "config.json").is_file():
            continue
        logger.info("answer accuracy %s training", moment)
        asked = (model, evaluation.lengths, evaluation.questions, evaluation.seed)
        rows[moment] = [row.as_json() for row in _ask(*asked, config.data.chat_template_kwargs, day)]
        with atomic_text(paths.accuracy) as stream:
            stream.write(json.dumps(rows, indent=2) + "\n")


def _initial_model(config: RunConfig) -> Path | None:
    """The folder of ``model.init``; ``None``, with a warning, if its weights have changed since the run's start."""
    from solopo_nemo.training.start import Start

    start = Start(config, 1)
    try:
        if start.origin["weights"] == start.imported.get("weights"):
            return start.source
        reason = "it holds other weights now than at the start"
    except UserError as error:  # a trained run gets its report, also if that folder is missing
        reason = str(error)
    logger.warning("no accuracy before training is measured: model.init=%s: %s", config.model.init, reason)
    return None


def _ask(*asked: Any) -> Any:
    """The answer accuracy. On a GPU a child process measures it, as a rank holds the memory of the trained model."""
    return run_isolated("the answer accuracy", _accuracy, *asked) if device.cuda() else _accuracy(unseen, *asked)


def _accuracy(_: Progress, *asked: Any) -> Any:
    from solopo_nemo.evaluation.accuracy import evaluate_accuracy

    return evaluate_accuracy(*asked)


def _show(config: RunConfig) -> None:
    from solopo_nemo.evaluation.accuracy import AccuracyRow, comparison_table

    paths, console = Paths(config.output), Console(markup=False)
    if paths.accuracy.is_file():
        rows = json.loads(paths.accuracy.read_text())
        if {"before", "after"} <= rows.keys():
            console.print(comparison_table(*([AccuracyRow(**r) for r in rows[k]] for k in ("before", "after"))))
    exported = [path for path in (paths.hf_adapter, paths.hf) if path.is_dir()] or [paths.hf]
    console.print(f"policy: {', '.join(map(str, exported))}\nreport: {paths.report / 'index.html'}", highlight=False)
