"""A model of real size, traced for GPUs, beside the planner, which counts Transformer Engine's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from zygote import forking

from solopo_nemo.config.schema import load_config
from solopo_nemo.planning import Lengths, Run, communication, hardware_flops, load_shape, memory

LAYOUT = ["model=qwen2_5_7b", "parallel.tensor=4", "parallel.sequence=true", "parallel.context=2"]
RUNS = {
    recompute: [*LAYOUT, "parallel.cp_comm_type=p2p", f"model.recompute={recompute}", "dry_run=true"]
    for recompute in ("none", "full")
}
LENGTHS = {"prompt_short": 1024, "prompt_long": 32 * 1024, "chosen": 128, "rejected": 128}


def _trace(_: int, out: str) -> None:
    from solopo_nemo.core.device import prepare_process

    prepare_process()
    from solopo_nemo.planning.dry_run.report import dry_run

    model = load_shape("Qwen/Qwen2.5-7B-Instruct")
    torch.save({k: dry_run(load_config("solo_dpo", o), model, LENGTHS, 8, 80.0) for k, o in RUNS.items()}, out)


@pytest.mark.slow
def test_a_traced_model_of_real_size_is_near_the_plan(tmp_path: Path) -> None:
    """Some 25 s. The trace holds less than the plan: torch's layers make norm and activation again in backward."""
    with forking():
        torch.multiprocessing.start_processes(_trace, (str(tmp_path / "t"),), nprocs=1, start_method="spawn")
    found: dict[str, Any] = torch.load(tmp_path / "t", weights_only=False)
    model = load_shape("Qwen/Qwen2.5-7B-Instruct")
    for recompute, overrides in RUNS.items():
        run = Run.of(load_config("solo_dpo", overrides), model, Lengths(32 * 1024, 1024, 128), 8)
        planned, trace = memory(run), found[recompute].traces[0]
        assert 0.80 < found[recompute].peak_gib / planned.gib < 1.02, recompute
        kinds = trace.peak.by("kind")
        for kind in ("weights", "gradients"):
            assert kinds[kind] == pytest.approx(planned.parts[kind], rel=0.01)
        assert kinds["optimizer"] == pytest.approx(planned.parts["optimizer state"], rel=0.01)
        flops = hardware_flops(model, run.workload, recompute).total * run.global_batch / run.layout.model_ranks
        assert 1 < trace.flops / flops < 1.08  # the kernels' fifth product in backward, and padding
        sent = communication(run)
        assert trace.sent["tensor"] == pytest.approx(sent.tensor, rel=0.02)
        assert trace.sent["data"] == pytest.approx(sent.data, rel=0.02)
        assert trace.sent["context"] == pytest.approx(sent.context, rel=0.02)
