"""The pinned Transformer Engine's own Python sources, against our table of limits, our stand-in and our calls."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import engine_stand_in
import pytest

from solopo_nemo.planning.dry_run.engine import PER_STEP, SAVED
from solopo_nemo.runtime import kernels

PACKAGE = Path(kernels.__file__).parents[1]
ATTENTION = "attention/dot_product_attention"
PIN = f"transformer-engine=={kernels.PINNED['transformer-engine']}"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> zipfile.Path:
    """``transformer_engine/pytorch`` of the wheel, which holds the Python sources alone."""
    folder = tmp_path_factory.mktemp("engine")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", str(folder)]
    subprocess.run([*command, PIN], check=True, capture_output=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    return zipfile.Path(wheel) / "transformer_engine" / "pytorch"


def parameters(source: str, name: str) -> set[str]:
    """Names of the parameters of a function, or of a class's ``__init__`` and ``forward``; ``**`` for any others."""
    (found,) = (n for n in ast.parse(source).body if isinstance(n, (ast.ClassDef, ast.FunctionDef)) and n.name == name)
    methods = [found] if isinstance(found, ast.FunctionDef) else found.body
    functions = [n for n in methods if isinstance(n, ast.FunctionDef) and n.name in (name, "__init__", "forward")]
    more = {"**" for f in functions if f.args.kwarg}
    return more | {a.arg for f in functions for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)}


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("RMSNorm", "module/rmsnorm.py"),
        ("Linear", "module/linear.py"),
        ("LayerNormLinear", "module/layernorm_linear.py"),
        ("DotProductAttention", f"{ATTENTION}/dot_product_attention.py"),
        ("apply_rotary_pos_emb", "attention/rope.py"),
    ],
)
def test_the_stand_in_takes_only_what_the_real_one_takes(engine: zipfile.Path, name: str, file: str) -> None:
    ours: Any = getattr(engine_stand_in, name)
    functions = [ours] if inspect.isfunction(ours) else [ours.__init__, ours.forward]
    named = [p for f in functions for p in inspect.signature(f).parameters.values() if p.kind is not p.VAR_KEYWORD]
    taken = parameters((engine / file).read_text(), name)
    by_position = {"x", "query", "key", "value"}
    assert "**" in taken or {p.name for p in named} - by_position <= taken


def test_what_the_package_imports_is_there_and_takes_the_calls(engine: zipfile.Path) -> None:
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformer_engine.pytorch."):
                source = (engine / (node.module.split(".", 2)[2].replace(".", "/") + ".py")).read_text()
                for alias in node.names:
                    taken = parameters(source, alias.name)
                    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
                    for call in (c for c in calls if isinstance(c.func, ast.Name) and c.func.id == alias.name):
                        assert {k.arg for k in call.keywords} <= taken, (file, call.lineno)
                        assert len(call.args) + len(call.keywords) <= len(taken), (file, call.lineno)


def test_the_table_says_what_the_sources_say(engine: zipfile.Path) -> None:
    utils, cp = ((engine / f"{ATTENTION}/{name}.py").read_text() for name in ("utils", "context_parallel"))
    versions = dict(
        re.findall(r"^    (version_required|version_required_blackwell|max_version) = \w+\(\"(.+?)\"\)", utils, re.M)
    )
    pinned = kernels.PINNED["transformer-engine"]
    assert kernels.flash_bounds(pinned) == (versions["version_required"], versions["max_version"])
    assert versions["version_required_blackwell"] == kernels.FLASH_ATTENTION_BLACKWELL
    (windows,) = re.findall(r"not sliding_window_attn or cp_comm_type in \[(.+?)\]", cp, re.S)
    classes = {"p2p": "KVP2P", "all_gather": "KVAllGather", "a2a": "QKVOA2A"}
    for mode, name in classes.items():
        body = re.split(r"\n(?:class|def) ", cp.split(f"class AttnFuncWithCPAnd{name}(")[1])[0]
        refuses = "assert not padding" in body or 'assert qkv_format != "thd"' in body
        assert kernels.takes_mode(mode, kernels.Installed(pinned), False) is not refuses, mode
        assert kernels.CONTEXT_MODES[mode].windows is (f'"{mode}"' in windows)
    joined = cp.split('if cp_comm_type == "a2a+p2p":')[1].split("else:")[0]
    assert 'qkv_format != "thd"' in joined
    assert not kernels.takes_mode("a2a+p2p", kernels.Installed(pinned), False)


def test_what_is_saved_for_backward_is_what_the_planner_and_the_dry_run_add(engine: zipfile.Path) -> None:
    """Of each name: torch's layers hold it too, it is a weight's, it is None without a mean, or it is in the table."""
    beside = {"inputmat", "weightmat", "weight", "bias", "ln_weight", "mu"}
    for file, names in SAVED.items():
        calls = [n for n in ast.walk(ast.parse((engine / file).read_text())) if isinstance(n, ast.Call)]
        saving = [c for c in calls if isinstance(c.func, ast.Name) and c.func.id == "prepare_for_saving"]
        (first,) = {tuple(a.id for a in c.args if isinstance(a, ast.Name)) for c in saving}
        assert {*first} - beside == {*names}, file
    ring = (engine / f"{ATTENTION}/context_parallel.py").read_text().split("class AttnFuncWithCPAndKVP2P(")[1]
    ring = re.split(r"\n(?:class|def) ", ring)[0]
    assert all(f"{name} = [None for _ in range(cp_size)]" in ring for name in PER_STEP)
    rotary = re.findall(r"save_for_backward\((.*?)\)", (engine / "attention/rope.py").read_text())
    assert all(
        set(re.split(r", ", saved)) <= {"freqs", "q_freqs", "k_freqs", "cu_seqlens", "start_positions"}
        for saved in rotary
    )
    import megatron.core.fusions.fused_bias_swiglu as swiglu

    assert "ctx.save_for_backward(input_for_backward)" in inspect.getsource(swiglu.SwiGLUFunction.forward)


def test_a_placeholder_of_each_shape_is_kept_for_good_where_gradients_are_added_in_place(engine: zipfile.Path) -> None:
    """``planning/state.py`` counts one for every shape of a layer's weights, experts' too, and for the head's."""
    base = ast.parse((engine / "module/base.py").read_text())
    assert "_dummy_wgrads = {}" in map(ast.unparse, base.body), "a table of the module, from which nothing is taken"
    (made,) = (n for n in base.body if isinstance(n, ast.FunctionDef) and n.name == "get_dummy_wgrad")
    assert "_dummy_wgrads[shape[0], shape[1], dtype] = torch.empty" in ast.unparse(made)
    for file in (*SAVED, "module/grouped_linear.py"):
        assert "get_dummy_wgrad" in (engine / file).read_text().split("fuse_wgrad_accumulation", 1)[1], file
