"""Experts by Transformer Engine's grouped layers, over a stand-in, beside this project's, on two ranks with half each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.distributed
SUPPORT = Path(__file__).parents[1] / "support"
EXPERTS = 4


def compare(rank: int, folder: Path) -> dict[str, Any]:
    """What either layer computes from the same weights, which came as a checkpoint from the other; bf16."""
    import engine_stand_in

    engine_stand_in.install()
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
    from megatron.core.dist_checkpointing.serialization import load_sharded_metadata
    from test_engine_branch import a_config

    from solopo_nemo.core import cpu_patches
    from solopo_nemo.core.lora import LoRA
    from solopo_nemo.core.model import build_model
    from solopo_nemo.core.scoring import fill_extra_states

    cpu_patches.install()
    dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(expert_model_parallel_size=2)
    tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)

    def built(gpu: bool, lora: Any = None) -> Any:
        engine_stand_in.on_gpu(gpu)
        config = a_config(
            torch.bfloat16, num_moe_experts=EXPERTS, moe_ffn_hidden_size=48, moe_router_topk=2, moe_layer_freq=[1, 0],
            moe_router_dtype="fp32", moe_aux_loss_coeff=0.01, expert_model_parallel_size=2,
        )  # fmt: skip
        model = build_model(config, 256, 128, lora=lora)
        for name, parameter in model.named_parameters():
            if name.endswith("_B"):
                torch.nn.init.normal_(parameter, 0.0, 0.05)
        return model

    def move(source: Any, target: Any, name: str) -> bool:
        path = folder / name
        path.mkdir(exist_ok=True)
        dist.barrier()
        dist_checkpointing.save(source.sharded_state_dict(), str(path))
        wanted = target.sharded_state_dict()
        fill_extra_states(wanted, load_sharded_metadata(str(path)))
        target.load_state_dict(dist_checkpointing.load(wanted, str(path)))  # strict
        one, other = whole(source, False), whole(target, False)
        return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)

    def whole(model: Any, gradients: bool) -> dict[str, torch.Tensor]:
        """Parameters or gradients by the names of this project's layers, whose experts are one tensor."""
        found, stacks = {}, {}
        for name, parameter in model.named_parameters():
            value = parameter.grad if gradients else parameter.detach()
            if value is None:
                continue
            stem, place = name.rstrip("0123456789"), name[len(name.rstrip("0123456789")) :]
            stacks.setdefault(stem, []).append(value.float()) if place else found.update({name: value.float()})
        return found | {name: torch.stack(parts) for name, parts in stacks.items()}

    def run(model: Any) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(rank)
        rows = torch.randn(40, 1, 64, generator=generator).bfloat16().requires_grad_()
        out, _ = model.decoder.layers[0].mlp(rows)
        (out.float() * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        return {"out": out.detach().float(), "rows": rows.grad.float()} | whole(model, True)

    def difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> dict[str, float]:
        assert one.keys() == other.keys()
        return {name: float((value - other[name]).norm() / value.norm()) for name, value in one.items()}

    result: dict[str, Any] = {}
    for kind, lora in {"weights": None, "adapters": LoRA(8, 16.0)}.items():
        ours, theirs, again = built(False, lora), built(True, lora), built(False, lora)
        result[f"{kind} moved"] = [move(ours, theirs, f"{kind} ours"), move(theirs, again, f"{kind} theirs")]
        engine_stand_in.on_gpu(False)
        plain = run(ours)
        engine_stand_in.on_gpu(True)
        result[kind] = difference(plain, run(theirs))
    experts = theirs.decoder.layers[0].mlp.experts
    result["layers"] = [type(module).__name__ for module in (experts, experts.linear_fc1, experts.linear_fc2)]
    result["fused"] = [theirs.config.moe_grouped_gemm, theirs.config.moe_permute_fusion]
    dist.barrier()
    return result


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("engine")
    path = f"{SUPPORT}:{SUPPORT.parents[1]}"
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    ended = [rank.communicate(timeout=300) for rank in ranks]
    for rank, (_, said) in zip(ranks, ended, strict=True):
        assert rank.returncode == 0, said[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in ended]


@pytest.mark.parametrize("rank", range(2))
def test_the_experts_are_the_engines_with_its_fused_moves(found: list[dict[str, Any]], rank: int) -> None:
    fc1, fc2 = "TEColumnParallelGroupedLinear", "TERowParallelGroupedLinear"
    assert found[rank]["layers"] == ["TEGroupedMLP", fc1, fc2]
    assert found[rank]["fused"] == [True, True]


@pytest.mark.parametrize("kind", ["weights", "adapters"])
@pytest.mark.parametrize("rank", range(2))
def test_checkpoints_move_and_results_agree(found: list[dict[str, Any]], rank: int, kind: str) -> None:
    """bf16, whose roundings lie elsewhere in either layer: one part in 256."""
    differences = found[rank][kind]
    assert found[rank][f"{kind} moved"] == [True, True]
    assert max(differences.values()) < 0.02, differences
    own = {name for name in differences if ".mlp." in name}
    if kind == "weights":
        assert own == {
            f"decoder.layers.0.mlp.{name}.weight" for name in ("router", "experts.linear_fc1", "experts.linear_fc2")
        }
    else:
        modules = {"lora_fc1": ("gate_proj", "up_proj"), "lora_fc2": ("down_proj",)}
        assert own == {
            f"decoder.layers.0.mlp.{at}.{m}_{half}" for at, named in modules.items() for m in named for half in "AB"
        }


if __name__ == "__main__":
    print(json.dumps(compare(int(sys.argv[1]), Path(sys.argv[2]))))
