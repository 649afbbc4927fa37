"""Checkpoints whose NeMo context names classes by the paths that they had in an earlier version."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from solopo_nemo.families.weights import imported_dtype
from solopo_nemo.runtime.errors import UserError

CONTEXT = """{"root": {"type": "ref", "key": "trainer_context_1"}, "objects": {
"tuple_1": {"type": {"type": "pyref", "module": "builtins", "name": "tuple"},
  "items": [["Index(index=0)", "bf16"], ["Index(index=1)", "params_dtype"]], "metadata": null},
"buildable_traverser_metadata_1": {"type": {"type": "pyref", "module": "fiddle._src.config", "name": "Buildable"},
  "items": [["Attr(name='fn_or_cls')", {"type": "pyref", "module": "solopo_nemo.model.models", "name": "SoLoQwen2Config"}],
    ["Attr(name='argument_names')", {"type": "ref", "key": "tuple_1"}]], "metadata": null},
"so_lo_qwen2_config_1": {"type": {"type": "pyref", "module": "fiddle._src.config", "name": "Config"},
  "items": [["Attr(name='bf16')", {"type": "leaf", "value": true, "paths": ["<root>.model.config.bf16"]}],
    ["Attr(name='params_dtype')", {"type": "pyref", "module": "torch", "name": "bfloat16",
      "paths": ["<root>.model.config.params_dtype"]}]],
  "metadata": {"type": "ref", "key": "buildable_traverser_metadata_1"}, "paths": ["<root>.model.config"]},
"optimizer_config_1": {"type": {"type": "pyref", "module": "fiddle._src.config", "name": "Config"},
  "items": [["Attr(name='params_dtype')", {"type": "pyref", "module": "torch", "name": "float32",
    "paths": ["<root>.model.optim.config.params_dtype"]}]], "metadata": null}}}"""
"""The parts that matter, as a version wrote them in which the models lay in ``solopo_nemo.model``."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    (tmp_path / "context").mkdir()
    return tmp_path


def test_the_type_is_read_without_the_classes(checkpoint: Path) -> None:
    (checkpoint / "context" / "io.json").write_text(CONTEXT)
    assert imported_dtype(checkpoint) == torch.bfloat16


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"objects": []}',
        '{"objects": {"a": {"items": [7]}}}',
        CONTEXT.replace('"bfloat16"', '"save"'),
        CONTEXT.replace("<root>.model.config.params_dtype", "<root>.x"),
    ],
)
def test_a_damaged_context_is_one_line(checkpoint: Path, text: str) -> None:
    (checkpoint / "context" / "io.json").write_text(text)
    with pytest.raises(UserError, match=r"io\.json: damaged"):
        imported_dtype(checkpoint)
