"""An output that would replace what it is made of is refused, and so is one whose companion would."""

from __future__ import annotations

from pathlib import Path

import pytest

from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.output import beside, keep_source


@pytest.mark.parametrize("link", [False, True])
def test_the_output_and_its_companions(tmp_path: Path, link: bool) -> None:
    out = tmp_path / "q.jsonl"
    for source in (out, beside(out, "passages")):
        source.write_text("{}")
        named = tmp_path / "link.jsonl" if link else source
        if link:
            named.unlink(missing_ok=True)
            named.symlink_to(source)
        with pytest.raises(UserError, match=f"{named}: is read and would be replaced by what is made of it"):
            keep_source(named, out)


def test_other_files_and_names_of_the_hub(tmp_path: Path) -> None:
    out, other = tmp_path / "q.jsonl", tmp_path / "q.contexts.jsonl"
    keep_source(out, out)  # it does not exist
    for file in (out, other):
        file.write_text("{}")
    keep_source(other, out)
    keep_source("org/name", out)
