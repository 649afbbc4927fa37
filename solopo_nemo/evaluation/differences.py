"""What differs between compared evaluations besides the models: settings, prompts and numbers of questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from solopo_nemo.evaluation.measured import Measured

_RECORD = ("window", "yarn", "chat_template_kwargs", "extra_body", "date")


def differences(models: Sequence[Measured], names: Sequence[str]) -> list[str]:
    """One line for each difference of a model from the first.

    For example: ``niah_plus: max_new_tokens is 512 for base and 64 for solo in 8 cells, such as single-4096-0``.

    Args:
        models: the evaluations.
        names: their display names.
    """
    lines = []
    first, base = models[0], names[0]
    for model, name in zip(models[1:], names[1:], strict=True):
        for key in _RECORD:
            values = first.record.get(key), model.record.get(key)
            if values[0] != values[1]:
                lines.append(f"{key} is {_said(values[0])} for {base} and {_said(values[1])} for {name}")
        for suite in sorted({suite for suite, _ in first.cells} | {suite for suite, _ in model.cells}):
            lines += [f"{suite}: {line}" for line in _of_suite(suite, first, model, base, name)]
    return lines


def _of_suite(suite: str, first: Measured, model: Measured, base: str, name: str) -> list[str]:
    ours, theirs = ({at[1]: cell for at, cell in one.cells.items() if at[0] == suite} for one in (first, model))
    if not ours or not theirs:
        return [f"only {base if ours else name} has it"]
    lines = []
    for cells, others, whose in ((ours, theirs, base), (theirs, ours, name)):
        if alone := sorted(cells.keys() - others.keys()):
            lines.append(f"{_cells(alone)} only for {whose}")
    found: dict[tuple[str, str, str], list[str]] = {}
    for cell in sorted(ours.keys() & theirs.keys()):
        for key in sorted(ours[cell].keys() & theirs[cell].keys()):
            if ours[cell][key] != theirs[cell][key]:
                values = ("", "") if key == "prompts" else (_said(ours[cell][key]), _said(theirs[cell][key]))
                found.setdefault((key, *values), []).append(cell)
    for (key, mine, other), cells_ in found.items():
        what = f"{key} is {mine} for {base} and {other} for {name}" if mine else "prompts or gold answers differ"
        lines.append(f"{what} in {_cells(cells_)}")
    return lines


def _cells(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} cells, such as {names[0]}"


def _said(value: Any) -> str:
    return "not set" if value is None else str(value)
