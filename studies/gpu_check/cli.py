"""Check and measure this project on one GPU, without NeMo: correctness beside fp64, then seconds and memory of steps.

Writes OUT after each row, and its tables beside it (.md); the same command goes on where one was stopped.
docs/performance.md shows the tables of docs/performance/gpu/check.json. Where NeMo is installed, the dry run's peaks
are then traced on the CPU and stand beside those that were measured. A machine without GPU runs tiny sizes. The exit
code is 0, or 1 where a row is wrong.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from solopo_nemo.runtime import device
from solopo_nemo.runtime.cli import ArgumentParser, positive_number
from solopo_nemo.runtime.errors import require
from solopo_nemo.runtime.output import atomic_text, check_writable
from studies.results import Results, machine, revision

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = ("SoLo-DPO", "Long-DPO", "transformers")
CHECKED = (
    "packed attention",
    "sliding window",
    "ring attention",
    "norm and linear",
    "SwiGLU and linear",
    "grouped experts",
    "response-only head",
    "training step, torch's layers",
    "training step, auto's layers",
)
"""The checks of ``studies.gpu_check.checks``; on a CPU a sliding window has another kernel."""
PACKAGES = ("torch", "megatron-core", "transformer-engine", "flash-attn", "transformers", "numpy")
UNFINISHED = "not finished"
LENGTHS = [8192 << i for i in range(8)]


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = ArgumentParser(__doc__)
    option = parser.options()
    option("--minutes N", "begin no row after so many (default: 8)", type=positive_number)
    option("--out FILE", "JSON file (default: gpu_check.json)", type=Path)
    given = parser.parse_args(arguments)
    end, out = time.monotonic() + 60 * (given.minutes or 8.0), given.out or Path("gpu_check.json")
    require(out.suffix == ".json" and not out.is_dir(), f"--out {out}: give the name of a .json file")
    check_writable(out.resolve().parent, "--out")
    device.prepare_environment(ranks_of_model=1)  # for the processes of the rows, as a run has it
    results, skipped = Results.open(out, **_machine()), set[tuple[str, str]]()
    rows = results.runs = [row for row in results.runs if not row.get("note", "").startswith(UNFINISHED)]
    for asked in _asked(device.cuda()):
        kind = asked.get("system", ""), asked.get("shape", "")
        row = next((row for row in rows if asked.items() <= row.items()), None)
        if row is None and (time.monotonic() > end or kind in skipped):
            continue
        if row is None:
            row = {**asked, **_run(asked, max(60.0, end - time.monotonic()))}
            rows.append(row)
            _write(results)
            print(_line(row), flush=True)
        if "note" in row and kind[0]:
            skipped.add(kind)  # longer prompts would not run either
    measured = [row for row in rows if row.get("system") == "SoLo-DPO" and "seconds" in row]
    for row in measured if device.cuda() and find_spec("nemo") else ():
        if "traced_gib" not in row:
            print(f"tracing {row['shape']}, {row['long']:,} tokens, on the CPU", flush=True)
            row["traced_gib"] = _traced(row)
            _write(results)
    return int(any(row.get("ok") is False for row in rows))


def _asked(gpu: bool) -> Iterator[dict[str, Any]]:
    """The rows in their order."""
    for precision in ("fp32", "bf16") if gpu else ("fp32",):
        yield from ({"check": n, "precision": precision} for n in CHECKED if gpu or n != "sliding window")
    for long in LENGTHS if gpu else (128,):
        for shape in ("0.5B", "1.5B") if gpu else ("tiny",):
            yield from ({"system": system, "shape": shape, "long": long} for system in SYSTEMS)


def _run(asked: dict[str, Any], seconds: float) -> dict[str, Any]:
    if asked.get("system") == "transformers" and find_spec("transformers") is None:
        return {"note": "not run: transformers is not installed"}
    command = [sys.executable, "-m", "studies.gpu_check.row", json.dumps(asked)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"note": f"{UNFINISHED} in {seconds:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"ok": False, "note": f"exit code {done.returncode}: {last}"}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _traced(row: dict[str, Any]) -> float | None:
    """Peak of the same step above its weights in a dry run, GiB; None where it ends with an error."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            f"model=qwen2_5_{row['shape'].lower().replace('.', '_')}", "dry_run=true", f"dry_run.length={row['long']}",
            f"output_dir={folder}", "trainer.global_batch=1", "model.recompute=none", "objective.align=chosen",
            "model.rope_scaling={type: yarn, factor: 64.0}",
            f"model.layers={'torch' if row['layers'] == 'local' else row['layers']}",
        ]  # fmt: skip
        command = [sys.executable, "recipes/solo_dpo.py", *overrides]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
        written = Path(folder, "dry_run.json")
        if not written.is_file():
            return None
        (rank,) = json.loads(written.read_text())["ranks"]
    return float(rank["peak_gib"]) - float(rank["kinds"]["weights"])


def _write(results: Results) -> None:
    results.save()
    rows, about = results.runs, results.about
    timed: dict[tuple[str, int], dict[str, str]] = {}
    for row in (row for row in rows if "system" in row):
        cell = f"{row['seconds']:.2f} s, {row['peak_gib']:.1f} GiB" if "seconds" in row else row["note"]
        timed.setdefault((row["shape"], row["long"]), {})[row["system"]] = cell
    checks = [[row["check"], row["precision"], _line(row).rpartition(": ")[2]] for row in rows if "check" in row]
    traced = {(row["shape"], row["long"]): f"{row['traced_gib']:.1f} GiB" for row in rows if row.get("traced_gib")}
    steps = [[at[0], f"{at[1]:,}", *(of.get(s, "-") for s in SYSTEMS), traced.get(at, "-")] for at, of in timed.items()]
    with atomic_text(results.path.with_suffix(".md")) as stream:
        packages = ", ".join(f"{name} {about[name]}" for name in PACKAGES if about[name])
        stream.write(f"Measured on {about.get('gpu', about['processor'])}, {packages}.\n\n")
        stream.write(_table(["beside fp64", "precision", "largest difference"], checks))
        stream.write("\n" + _table(["model", "long prompt", *SYSTEMS, "SoLo-DPO, traced"], steps))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def _line(row: dict[str, Any]) -> str:
    if "check" in row:
        verdict = row.get("note") or f"{row['difference']:.1e} {'ok' if row['ok'] else 'WRONG'}"
        return f"{row['check']}, {row['precision']}: {verdict}"
    found = row.get("note") or f"{row['seconds']:.2f} s, {row['peak_gib']:.2f} GiB"
    return f"{row['system']}, {row['shape']}, {row['long']:,} tokens: {found}"


def _machine() -> dict[str, Any]:
    found = machine() | {"capability": list(device.capability() or ()), "device_gib": round(device.memory_gib(), 1)}
    found["revision"] = revision()
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
