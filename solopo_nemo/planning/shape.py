"""The shape of the model to plan: read from its folder or from a public configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.hf import is_checkpoint, read_config
from solopo_nemo.runtime.errors import UserError, reason_of
from solopo_nemo.runtime.json_files import read_json
from solopo_nemo.runtime.paths import ASSETS, EMBEDDED_MODEL

NAMED_SHAPES = ASSETS / "model_shapes.json"
"""Public configurations by hub name. A plan with one of them needs neither the model nor the network."""
ROPE_KEY = "model.rope_scaling"
"""Key of a run that replaces a model's rotary scaling."""

ModelShape = ModelDescription
"""The planner's name of a model description."""


@cache
def named_shapes() -> dict[str, dict[str, Any]]:
    """The configurations of :data:`NAMED_SHAPES` by hub name."""
    return json.loads(NAMED_SHAPES.read_text())


def load_shape(init: str, rope_scaling: Mapping[str, Any] | None = None) -> ModelShape:
    """The shape of the model that ``model.init`` names: a local folder, ``builtin``, or a hub name.

    ``rope_scaling`` replaces the model's own. A hub name in :data:`NAMED_SHAPES` is read from there. Any other hub name
    is downloaded from the hub.

    Raises:
        UserError: the model does not exist or is not supported.
    """
    if init in named_shapes() and not Path(init).exists():
        return ModelShape.from_hf(named_shapes()[init], rope_scaling=rope_scaling, rope_key=ROPE_KEY)
    folder = EMBEDDED_MODEL if init == "builtin" else Path(init)
    folder = folder / "hf" if is_checkpoint(folder) else folder
    try:
        if folder.is_dir():
            return read_config(folder, rope_scaling=rope_scaling, rope_key=ROPE_KEY)
        return ModelShape.from_hf(_from_hub(init), "config.json", rope_scaling=rope_scaling, rope_key=ROPE_KEY)
    except UserError as error:
        raise UserError(f"model.init={init}: {error}") from None


def _from_hub(name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_download

    try:
        return read_json(Path(hf_hub_download(name, "config.json")))
    except (OSError, ValueError) as error:
        reason = reason_of(error)
        known = ", ".join(named_shapes())
        raise UserError(
            f"no such folder, and the hub did not give its configuration ({reason}); known without either are {known}"
        ) from None
