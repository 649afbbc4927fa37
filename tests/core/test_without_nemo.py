"""The core on Megatron-core alone: the documented script in a process without NeMo, against the mixin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from spawn import run_ranks
from zygote import TORCHRUN, forking

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs/examples/without_nemo.py"
SHARED = [
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "num_query_groups",
    "layernorm_epsilon",
    "tensor_model_parallel_size",
    "context_parallel_size",
    "cp_comm_type",
]


def losses_of_the_script(tensor: int, context: int) -> list[float]:
    """From processes that cannot import NeMo: ``torchrun`` is forked, the ranks are not."""
    command = [sys.executable, *TORCHRUN, "--standalone", f"--nproc-per-node={tensor * context}"]
    command += [str(ROOT / "tests/support/no_nemo.py"), str(SCRIPT), f"--tensor={tensor}", f"--context={context}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with forking():
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [float(loss) for loss in done.stdout.split("\n")[-2].split()]


def losses_of_the_mixin(tensor: int, context: int) -> list[float]:
    """The same steps, the model and the step being NeMo's with the mixin."""
    sys.path.insert(0, str(SCRIPT.parent))
    import without_nemo
    from nemo.collections import llm

    from solopo_nemo import SoLoPOMixin

    class SoLoQwen2(SoLoPOMixin, llm.Qwen2Model): ...

    models: list[Any] = []

    def build_model(config: Any, vocab_size: int, length: int) -> Any:
        shared = {name: getattr(config, name) for name in SHARED}
        model = SoLoQwen2(llm.Qwen2Config(vocab_size=vocab_size, seq_length=length, rotary_base=10000, **shared))
        model.configure_model()
        models.append(model)
        return model.module

    def forward_step_of(objective: Any, reference: Any) -> Any:
        (model,) = models
        model.objective, model.reference = objective, reference

        def forward_step(iterator: Any, _: Any) -> Any:
            batch = model.data_step(iterator)
            model.training_loss_reduction.setup(batch)
            return model.forward_step(batch), model.training_loss_reduction

        return forward_step

    with patch.multiple(without_nemo, build_model=build_model, ForwardStep=forward_step_of):
        return without_nemo.train(tensor, context)


@pytest.mark.parametrize(("tensor", "context"), [(1, 1), (2, 1), (1, 2)])
def test_the_script_without_nemo_gets_the_losses_of_the_mixin(tmp_path: Path, tensor: int, context: int) -> None:
    got = losses_of_the_script(tensor, context)
    assert len(set(got)) == 3
    assert got == run_ranks(tensor * context, losses_of_the_mixin, (tensor, context), tmp_path / "out.pt")


@pytest.mark.parametrize("started", [{}, {"WORLD_SIZE": "3"}], ids=["without torchrun", "on three ranks"])
def test_another_start_of_the_script_is_refused(started: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"} | started
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, str(SCRIPT), "--tensor=2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.endswith("N is tensor * context, or 2 or 4 times as many\n")


def test_nemo_cannot_be_imported_where_the_script_runs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import nemo")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/support/no_nemo.py"), str(script)], capture_output=True, check=False
    )
    assert b"ModuleNotFoundError" in done.stderr
