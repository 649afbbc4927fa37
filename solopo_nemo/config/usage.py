"""What ``python recipes/<recipe>.py --help`` prints: the keys, their defaults and comments, out of the YAML."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from solopo_nemo.runtime.paths import CONF


def describe(recipe: str) -> str:
    """Help text of a recipe: its keys with their defaults and comments, group by group."""
    lines = [
        f"usage: python recipes/{recipe}.py [key=value ...] [group=option ...]",
        "",
        _comment(CONF / f"{recipe}.yaml"),
        "With no argument it runs the embedded default on this machine.",
        "",
        f"Keys of conf/{recipe}.yaml over conf/base.yaml:",
        *_body(CONF / "base.yaml", skip_until="output_dir:"),
    ]
    choices = _choices(recipe)
    for group in ("model", "objective", "data", "parallel", "optim", "trainer", "logger", "evaluation"):
        options = sorted(p.stem for p in (CONF / group).glob("*.yaml"))
        lines += ["", f"{group}={'|'.join(options)}"]
        body = _body(CONF / group / f"{choices[group]}.yaml", prefix=f"{group}.")
        lines += [f"  {line}" if line else "" for line in body]
    return "\n".join(lines)


def _choices(recipe: str) -> dict[str, str]:
    """The option that a recipe takes for each group unless told otherwise."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(recipe, return_hydra_config=True)
    return dict(composed.hydra.runtime.choices)


def _comment(path: Path) -> str:
    first = path.read_text().split("\n", 1)[0]
    return first.removeprefix("# ") if first.startswith("#") else ""


def _body(path: Path, prefix: str = "", skip_until: str = "") -> list[str]:
    lines = path.read_text().rstrip().split("\n")
    if skip_until:
        lines = lines[next(i for i, line in enumerate(lines) if line.startswith(skip_until)) :]
    lines = [line for line in lines if not line.startswith("hydra:") and "output_subdir" not in line]
    lines = [line for line in lines if line.strip() != "run: {dir: .}"]
    return [prefix + line if line and line[0] not in " #" else line for line in lines]
