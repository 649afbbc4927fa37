"""What an import changes in torch (nothing), and who may ask torch for a device (one module)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from solopo_nemo.core import cpu_patches
from solopo_nemo.core.cpu_patches import _CudaMeansCpu

ROOT = Path(__file__).parents[2]
REPORT = """
import os, torch
cuda = dict(vars(torch.cuda))
def report():
    import torch._dynamo.eval_frame as dynamo
    mode = torch.overrides._get_current_function_mode_stack()
    print([k for k in cuda if vars(torch.cuda)[k] is not cuda[k]], mode, dynamo._stance.stance,
          os.environ.get("TORCHDYNAMO_DISABLE"))
{program}
"""
CORE = "from solopo_nemo.core import device, head, model, reference, scoring, step; import solopo_nemo.core.layers.spec"


def reports(program: str) -> list[str]:
    """What a process says that torch has become, whenever ``program`` calls ``report()``."""
    code = REPORT.format(program=program)
    # a test of this process may have prepared it
    environment = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return [line for line in done.stdout.splitlines() if line.startswith("[")]


def test_an_import_changes_nothing_in_torch_and_a_prepared_process_computes_on_the_cpu() -> None:
    imported, prepared = reports(f"{CORE}; report(); device.prepare_process(); report()")
    assert imported == "[] [] default None"
    if not torch.cuda.is_available():
        assert "'current_device'" in prepared
        assert "_CudaMeansCpu" in prepared
        assert prepared.endswith("force_eager 1")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the patch is for machines without CUDA")
def test_every_way_to_name_a_gpu_means_the_cpu() -> None:
    prepared = cpu_patches._mode is not None  # by a test before
    with nullcontext() if prepared else _CudaMeansCpu():
        x = torch.zeros(2, device="cuda")
        made = [x, x.cuda(), x.to("cuda"), x.to(device=torch.device("cuda", 0)), x.to("cuda", torch.float64)]
        made.append(torch.zeros(2, pin_memory=True))
        assert x.type() == "torch.cuda.FloatTensor"
        assert [str(y.device) for y in made] == ["cpu"] * len(made)
        assert made[4].dtype == torch.float64
        assert x.type(torch.float64).dtype == torch.float64


@pytest.mark.distributed
def test_an_import_of_the_mixin_changes_nothing_in_torch() -> None:
    assert reports("from solopo_nemo import SoLoPOMixin; report()") == ["[] [] default None"]


def test_one_module_asks_torch_for_the_device() -> None:
    found = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "solopo_nemo").rglob("*.py")
        if re.search(r"torch\.cuda\.\w", path.read_text(encoding="utf-8"))
    }
    assert found == {"solopo_nemo/runtime/device.py", "solopo_nemo/core/cpu_patches.py"}


def test_a_scaled_gradient_is_megatrons_to_the_bit_and_no_copy() -> None:
    from megatron.core.utils import local_multi_tensor_scale

    from solopo_nemo.core.cpu_patches import scale

    source = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    for target in (source.clone(), torch.empty(3, 5, dtype=torch.bfloat16)):
        expected = target.clone()
        local_multi_tensor_scale(0, None, [[source], [expected]], 0.3)
        scale(0, torch.zeros(1), [[source], [target]], 0.3)
        assert torch.equal(target, expected)
    before = source.data_ptr()
    scale(0, torch.zeros(1), [[source], [source]], 0.3)
    assert torch.equal(source.bfloat16(), target)
    assert source.data_ptr() == before
