from __future__ import annotations

import pytest

from solopo_nemo.data.normal_form import holds, normalize, searchable


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The Anglican Communion", "anglican communion"),
        ("  Göttingen,\n Lower  Saxony ", "gottingen lower saxony"),
        ("U.S.-based", "us based"),
        ("the U.S", "us"),
        ("Governor-General.The Queen", "governor general queen"),
        ("about $1,180.5", "about 1180.5"),
        ("6.8 inches.", "6.8 inches"),
        ("snake_case", "snake case"),
        ("The", "the"),
        ("…", ""),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("It lies in Germany.", "German", False),
        ("In the north of Norway", "no", False),
        ("He said no.", "no", True),
        ("the u.s.-based firm", "US", True),
        ("a bus stop", "US", False),
        ("It has 1,135 rooms", "35", False),
        ("It has 35 rooms", "35", True),
        ("the Gottingen school", "Göttingen", True),
        ("anything", "?!", False),
    ],
)
def test_holds(text: str, answer: str, held: bool) -> None:
    assert holds(searchable(text), [searchable(answer)]) is held
