from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from solopo_nemo.builders.contexts.targets import Targets
from solopo_nemo.runtime.errors import UserError


def test_numbers_ranges_and_files(tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.txt"
    lengths.write_text("9000\n\n12000\n12000\n12000\n")
    targets = Targets.parse(1100, f"4096, 5000-6000,{lengths}")
    assert [name for name, _ in targets.named()] == ["short", "4096", "5000-6000", "lengths"]
    number, span, file = targets.long
    assert not number.varies
    assert number.draw(Random(0)) == 4096
    random = Random(0)
    drawn = [span.draw(random) for _ in range(2000)]
    assert min(drawn) < 5020
    assert max(drawn) > 5980
    assert 5450 < sum(drawn) / len(drawn) < 5550
    counts = Counter(file.draw(random) for _ in range(2000))
    assert set(counts) == {9000, 12000}
    assert 400 < counts[9000] < 600
    assert [name for name, _ in Targets.parse("1100", "7500").named()] == ["short", "long"]
    binary = Targets.parse("1K", "4k-6K,8K").long
    assert [(target.label, target.low, target.high) for target in binary] == [("4k-6K", 4096, 6144), ("8K", 8192, 8192)]


@pytest.mark.parametrize(
    ("short", "long", "message"),
    [
        (0, 100, "short target must be positive"),
        (100, 100, "short target must be positive and below"),
        ("100-500", "400-900", "below the long one, for every question"),
        (100, "800,400", "--long-tokens 800,400: each target must be above"),
        (100, "900-800", "ends below its begin"),
        (100, "4X", "'4X': give a number, such as 7500 or 8K, a range like 6000-9000, or a file"),
        (100, "", "give a number"),
    ],
)
def test_targets_that_cannot_be(short: int | str, long: int | str, message: str) -> None:
    with pytest.raises(UserError) as error:
        Targets.parse(short, long)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [(b"9000\n-3\n", "f.txt:2: '-3' is no length"), (b"\n", "no lengths"), (b"\xe9", "UTF-8")]
)
def test_bad_distributions(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "f.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Targets.parse(100, str(tmp_path / "f.txt"))
