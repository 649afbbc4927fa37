"""Compare the numbers of two versions: `python tests/same_numbers.py 776229a` runs every recipe with both.

The old version runs in a git worktree of that commit with the Megatron-core that it needs, the new one in this checkout.
Both get the same frozen inputs, starting weights and settings (`tests/support/frozen`, :data:`RECIPES`), one rank and
one thread. Every metric of every step, without times and memory, and every exported weight has to be equal to the bit;
the exit code is 1 otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "support"))
from earlier_megatron import install_megatron  # noqa: E402
from zygote import forking  # noqa: E402

FROZEN = ROOT / "tests" / "support" / "frozen"
REVISION = "776229a"
MEGATRON = "megatron"
"""Folder of a worktree; it stands on no path of this checkout."""
SETTINGS = (
    f"model.init={FROZEN / 'tiny_qwen2'}",
    f"data.train={FROZEN / 'triplets.jsonl.gz'}",
    "evaluation=none",
    "logger.tensorboard=false",
    "trainer.global_batch=16",
    "trainer.micro_batch=4",
    "optim.beta2=0.98",
)
"""What all runs share: the presets of the embedded model as they were at :data:`REVISION`, word for word."""
_FAST, _SLOW = ("optim.lr=1e-3", "optim.min_lr=1e-4"), ("optim.lr=5e-4", "optim.min_lr=1e-4")
_HIGHER = "objective.detach_higher=true"
RECIPES = {
    "solo_dpo": (*_FAST, _HIGHER, "objective.alpha=3.0"),
    "solo_simpo": (*_FAST, _HIGHER),
    "solo_orpo": (*_SLOW, _HIGHER),
    "solo_ipo": (*_FAST, _HIGHER),
    "solo_slic": (*_FAST, _HIGHER),
    "long_po": _FAST,
    "longpo": _FAST,
    "sft": _FAST,
}
RENAMED: dict[str, str] = {}
"""Metrics that have another name than at :data:`REVISION`: the old one, and the present one."""
MEASURED = ("seconds", "peak_memory_gib")
"""Metrics that differ from one run to the next."""


def has_revision(revision: str) -> bool:
    """Whether this clone holds a commit; a shallow one lacks old commits."""
    found = subprocess.run(["git", "-C", str(ROOT), "cat-file", "-e", f"{revision}^{{commit}}"], capture_output=True)
    return found.returncode == 0


@contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """A checkout of an earlier version, and its Megatron-core, removed at the end."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--detach", str(folder), revision], check=True, capture_output=True)
    try:
        install_megatron(folder / MEGATRON)
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True, capture_output=True)


def start_run(tree: Path, recipe: str, output: Path, steps: int) -> subprocess.Popen[str]:
    """Start a recipe of a checkout; its output goes to `output.log`."""
    words = [*SETTINGS, *RECIPES[recipe], f"trainer.max_steps={steps}", f"output_dir={output}"]
    path = [str(tree), *([str(tree / MEGATRON)] if tree != ROOT else [])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    with output.with_suffix(".log").open("w") as log, forking():  # programs of this checkout alone are forked
        return subprocess.Popen(
            [sys.executable, f"recipes/{recipe}.py", *words],
            cwd=tree,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


def read_metrics(output: Path) -> list[dict[str, float]]:
    """The metrics of each step that two runs have in common, by their present names."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{RENAMED.get(name, name): value for name, value in row.items() if name not in MEASURED} for row in rows]


def compare_runs(old: Path, new: Path) -> list[str]:
    """Every difference between two runs, in words; empty where all numbers are the same."""
    from safetensors.numpy import load_file

    differences = []
    steps_old, steps_new = read_metrics(old), read_metrics(new)
    if len(steps_old) != len(steps_new):
        differences.append(f"{len(steps_old)} steps, {len(steps_new)} now")
    for step, (before, now) in enumerate(zip(steps_old, steps_new, strict=False), 1):
        for name in sorted(before.keys() | now.keys()):
            if before.get(name) != now.get(name):
                differences.append(f"step {step}, {name}: {before.get(name)}, now {now.get(name)}")
    weights_old, weights_new = (load_file(folder / "hf" / "model.safetensors") for folder in (old, new))
    for name in sorted(weights_old.keys() | weights_new.keys()):
        if name not in weights_old or name not in weights_new:
            differences.append(f"{name}: exported by one version only")
        elif (a := weights_old[name]).dtype != (b := weights_new[name]).dtype or a.tobytes() != b.tobytes():
            differences.append(f"{name}: other weights")
    return differences


def compare_recipe(old: Path, recipe: str, steps: int, folder: Path) -> list[str]:
    """Run a recipe with an old checkout and with this one, side by side, and compare.

    Args:
        old: checkout of the old version.
        recipe: name, a key of :data:`RECIPES`.
        steps: of the optimizer.
        folder: for both runs.

    Returns:
        The differences; a run that failed is one.
    """
    outputs = {"old": folder / f"{recipe}-old", "new": folder / f"{recipe}-new"}
    runs = {name: start_run(tree, recipe, outputs[name], steps) for name, tree in (("old", old), ("new", ROOT))}
    try:
        for name, process in runs.items():
            if process.wait():
                tail = outputs[name].with_suffix(".log").read_text()[-2000:]
                return [f"the {name} version ended with code {process.returncode}: {tail}"]
    finally:
        for process in runs.values():
            process.kill()  # does nothing where it has ended
    return compare_runs(outputs["old"], outputs["new"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("revision", nargs="?", default=REVISION, help="commit to compare with (default: %(default)s)")
    parser.add_argument("--recipes", default=",".join(RECIPES), help="with commas between them (default: all)")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of each run, up to four (default: 4)")
    parsed = parser.parse_args(arguments)
    recipes = parsed.recipes.split(",")
    if unknown := [recipe for recipe in recipes if recipe not in RECIPES]:
        parser.error(f"--recipes: no recipe {unknown[0]}; there are {', '.join(RECIPES)}")
    if not has_revision(parsed.revision):
        parser.error(f"no commit {parsed.revision} in this clone; `git fetch --unshallow` brings all commits")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the worktree is removed then too
    different = 0
    with tempfile.TemporaryDirectory() as scratch, worktree(parsed.revision, Path(scratch) / "tree") as old:
        print(f"{'recipe':12}{'differences from ' + parsed.revision}")
        for recipe in recipes:
            found = compare_recipe(old, recipe, parsed.steps, Path(scratch))
            different += bool(found)
            print(f"{recipe:12}{len(found) or 'none'}", *found[:10], sep="\n    ", flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
