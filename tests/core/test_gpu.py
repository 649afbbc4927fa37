"""What only a machine with CUDA and Transformer Engine can show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA on this machine"),
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("cp", [2, 4, 8])
def test_our_split_is_the_one_of_transformer_engine(cp: int) -> None:
    import transformer_engine_torch as tex

    from solopo_nemo.data.packing import Layout, pack

    names = ("short_chosen", "short_rejected", "long_chosen")
    # token id = global index in the packed sequence, so that the local tokens are the indices themselves
    sample = {"id": "0", "prompt_short": [0] * 7, "prompt_long": [0] * 90, "chosen": [0] * 5, "rejected": [0] * 3}
    whole = pack([sample], names, Layout(1, 0, 2 * cp))
    cu_seqlens, total = whole["cu_seqlens"].cuda(), int(whole["cu_seqlens"][-1])
    for rank in range(cp):
        theirs = tex.thd_get_partitioned_indices(cu_seqlens, total, cp, rank).cpu().long()
        part = pack([sample], names, Layout(cp, rank))
        starts = part["cu_seqlens"][:-1].long()
        lengths = part["cu_seqlens"].diff() // cp
        ours = part["position_ids"][0] + starts.repeat_interleave(lengths)
        assert torch.equal(part["cu_seqlens"], whole["cu_seqlens"])
        assert torch.equal(ours, theirs)


def test_response_head_in_bf16_agrees_with_fp32_logits() -> None:
    from solopo_nemo.core.head import vocab_parallel_logprob

    torch.manual_seed(0)
    rows = torch.randn(300, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (torch.randn(8192, 256, device="cuda") * 0.05).bfloat16().requires_grad_()
    labels = torch.randint(0, 8192, (300,), device="cuda")
    logp = vocab_parallel_logprob(rows, weight, labels, None, 64)
    logp.sum().backward()
    exact_rows, exact_weight = (x.detach().float().requires_grad_() for x in (rows, weight))
    exact = (exact_rows @ exact_weight.t()).log_softmax(-1).gather(1, labels[:, None])[:, 0]
    exact.sum().backward()
    assert (logp - exact).abs().max() < 0.05
    for got, want in ((rows.grad, exact_rows.grad), (weight.grad, exact_weight.grad)):
        assert (got.float() - want).norm() / want.norm() < 0.01


def test_the_product_of_all_experts_agrees_with_each_token_alone() -> None:
    from test_experts import COUNTS, one_by_one, operands, results

    from solopo_nemo.core.layers import experts

    given = [tensor.detach().cuda().requires_grad_() for tensor in operands(torch.bfloat16)]
    assert experts._is_one_product(given[0])
    got = results(lambda *tensors: experts._GroupedSwiGLU.apply(*tensors, COUNTS), given)
    for mine, plain in zip(got, results(one_by_one, operands(torch.float64)), strict=True):
        assert float((mine.cpu().double() - plain).abs().max() / plain.abs().max()) < 3e-2


@pytest.mark.parametrize("layout", ["", "parallel.tensor=2 parallel.sequence=true", "parallel.context=2"])
def test_the_recipe_runs_on_gpus(tmp_path: Path, layout: str) -> None:
    ranks = 1 if not layout else 2
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} GPUs")
    overrides = f"output_dir={tmp_path} trainer.max_steps=3 trainer.global_batch=8 parallel.data=1 evaluation.name=none {layout}"
    subprocess.run([sys.executable, "recipes/solo_dpo.py", *overrides.split()], cwd=ROOT, check=True)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss/po"] == pytest.approx(0.6931, abs=5e-3)
    assert all(0 < row["grad_norm"] < float("inf") for row in rows)
