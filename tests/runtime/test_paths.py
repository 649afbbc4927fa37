"""The home folder in the paths of command lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from solopo_nemo.runtime.cli import ArgumentParser, path_or_name
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import expand_home


def test_every_path_of_a_tool_may_begin_with_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    parser = ArgumentParser(prog="x")
    option = parser.options()
    parser.add_argument("file", type=Path)
    option("--out FILE", "", type=Path, nargs="+")
    option("--data FOLDER", "", Path("data"))
    option("--model MODEL", "", type=path_or_name)
    option("--name NAME", "")
    given = parser.parse_args(["~/a", "--out", "~", "b~", "--data=~/d", "--model=~/m", "--name", "~n"])
    assert vars(given) == {
        "file": Path("/home/me/a"),
        "out": [Path("/home/me"), Path("b~")],
        "data": Path("/home/me/d"),
        "model": "/home/me/m",
        "name": "~n",
    }
    assert parser.parse_args(["a"]).data == Path("data")
    inner = parser.add_subparsers().add_parser("y")
    inner.add_argument("--to", type=Path)
    assert inner.parse_args(["--to", "~/t"]).to == Path("/home/me/t")


def test_a_user_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"--out=~no_such_user/x: no home folder ~no_such_user here: write \./~no_such"):
        expand_home("~no_such_user/x", "--out=")
