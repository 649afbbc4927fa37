"""The configuration reference holds every key that a run has, with the comment of its YAML."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from shown import DOCS

from solopo_nemo.config.schema import load_config
from solopo_nemo.runtime.paths import CONF

pytestmark = pytest.mark.usefixtures("hooks_on_path")


def flat(values: dict[str, Any], above: str = "") -> set[str]:
    names = set()
    for key, value in values.items():
        names |= flat(value, f"{above}{key}.") if isinstance(value, dict) and value else {f"{above}{key}"}
    return names


@pytest.mark.parametrize("recipe", sorted(p.stem for p in CONF.glob("*.yaml") if p.stem != "base"))
def test_every_key_of_a_recipe_is_there(recipe: str) -> None:
    from hooks import reference

    text = reference()
    keys = flat(asdict(load_config(recipe, []))) - {"recipe"}
    assert not {key for key in keys if f"| `{key}` |" not in text}
    assert f"`recipes/{recipe}.py`" in text


def test_every_file_of_a_group_is_there() -> None:
    from hooks import SECTIONS, reference

    text = reference()
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    assert groups == set(SECTIONS)
    for group in groups - {"data", "parallel", "optim", "trainer", "logger", "preset"}:
        for path in (CONF / group).glob("*.yaml"):
            assert f"`{group}={path.stem}`" in text


def test_keys_are_read_with_values_and_comments(tmp_path: Path) -> None:
    from hooks import Key, keys

    path = tmp_path / "group.yaml"
    path.write_text("# About.\ndefaults:\n  - _self_\na: null   # one | two\nb:\n  c: [1, 2]\n  d:\nhydra:\n  run: x\n")
    assert list(keys(path)) == [Key("a", "null", "one | two"), Key("b.c", "[1, 2]", "")]


def test_every_key_has_a_meaning() -> None:
    from hooks import reference

    assert not re.findall(r"^\| `[\w.]+` \| `.*` \|  \|$", reference().split("## `preset`")[0], re.MULTILINE)


def test_the_page_asks_for_the_tables() -> None:
    from hooks import PAGE, PLACE

    assert (DOCS / PAGE).read_text().count(PLACE) == 1
