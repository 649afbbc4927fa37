"""The comments of conf/**/*.yaml, which --help and the configuration page print, are the schema's texts."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from solopo_nemo.config.usage import describe
from solopo_nemo.runtime.paths import CONF

SCRIPT = Path(__file__).parents[2] / ".ci" / "yaml_comments.py"


@pytest.fixture(scope="module")
def commented() -> Callable[[Path], str]:
    spec = spec_from_file_location("yaml_comments", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.commented


def test_the_comments_are_those_of_the_schema(commented: Callable[[Path], str]) -> None:
    other = [path for path in CONF.rglob("*.yaml") if commented(path) != path.read_text()]
    assert not other, "python .ci/yaml_comments.py writes them"


def test_a_key_without_a_text_is_refused(commented: Callable[[Path], str], tmp_path: Path) -> None:
    path = tmp_path / "trainer" / "default.yaml"
    path.parent.mkdir()
    path.write_text("epochs: 1   # something else\n")
    assert commented(path) == "epochs: 1  # passes over the data, where max_steps is null\n"
    path.write_text("epochs: 1   # something else\nunheard_of: 1\n")
    with pytest.raises(KeyError, match=r"trainer\.unheard_of"):
        commented(path)


def test_help_has_the_keys_of_the_chosen_options() -> None:
    text = describe("solo_dpo", ["peft=lora", "objective=simpo", "model=no_such_model", "--help"])
    for key in (
        "hub.push=null",
        "dry_run.gpus=null",
        "plugins=[]",
        "peft.rank=16",
        "objective.gamma=1.0",
        "model.init=",
    ):
        assert f"\n  {key}" in text
    assert all(
        len(line.split(None, 1)) == 2
        for line in describe("sft", ["model=qwen2_5_7b"]).splitlines()[4:]
        if line[:1] == " "
    )
