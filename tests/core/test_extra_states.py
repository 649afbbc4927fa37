"""Checkpoints between layers with and without Transformer Engine: its norms ask for an extra state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import engine
import pytest
import torch
from layouts import SINGLE
from spawn import run_ranks

pytestmark = pytest.mark.distributed


class EngineNorm(torch.nn.RMSNorm):
    """As Transformer Engine's: an extra state that is missing is an error (pytorch/ops/op.py:528, 604 of 2.11)."""

    def get_extra_state(self) -> torch.Tensor:
        return torch.empty(0, dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor | None) -> None:
        assert state is None or state.numel() == 0


class OldNorm(torch.nn.RMSNorm):
    """As this project's was: without an extra state."""


def _module(norm: type[torch.nn.RMSNorm] | None) -> Any:
    """A Qwen3, which has norms of queries and keys as well, with all its norms of a class; None: this project's."""
    import dataclasses

    module = engine.build(dataclasses.replace(SINGLE, family="qwen3")).module.module
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if norm is not None and type(child).__name__ == "RMSNorm":
                other = norm(child.weight.shape, eps=child.eps)
                other.weight = child.weight
                setattr(parent, name, other)
    return module


def move(folder: str) -> dict[str, Any]:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata

    from solopo_nemo.core.scoring import fill_extra_states

    engine.enter(SINGLE)
    kinds = {"ours": None, "engine": EngineNorm, "old": OldNorm}
    found: dict[str, Any] = {}
    for saved, norm in kinds.items():
        path = Path(folder) / saved
        path.mkdir()
        module = _module(norm)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
        dist_checkpointing.save(module.sharded_state_dict(), str(path))
        for loaded, other in kinds.items():
            target = _module(other)
            wanted = target.sharded_state_dict()
            fill_extra_states(wanted, load_sharded_metadata(str(path)))
            target.load_state_dict(dist_checkpointing.load(wanted, str(path)))  # strict
            pairs = zip(module.parameters(), target.parameters(), strict=True)
            found[f"{saved} to {loaded}"] = all(torch.equal(a, b) for a, b in pairs)
    try:
        dist_checkpointing.load(_module(EngineNorm).sharded_state_dict(), str(Path(folder) / "old"))
    except BaseException as error:  # torch derives it from there
        found["unfilled"] = type(error).__name__
    found["norms"] = sum(isinstance(m, EngineNorm) for m in _module(EngineNorm).modules())
    return found


def test_checkpoints_move_between_the_layers(tmp_path: Path) -> None:
    found = run_ranks(1, move, (str(tmp_path),), tmp_path / "result")
    assert found.pop("norms") == 2 * engine.LAYERS + 1
    assert found.pop("unfilled") == "CheckpointException"  # what the fault was
    assert found == {f"{a} to {b}": True for a in ("ours", "engine", "old") for b in ("ours", "engine", "old")}
