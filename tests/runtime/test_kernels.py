"""The table of what attention takes, and everyone who reads it: checks, planner, requirements, documentation."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from solopo_nemo.config.schema import load_config
from solopo_nemo.config.world import check_context
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.family import FAMILIES
from solopo_nemo.planning.search import valid_layouts
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.runtime import device, kernels
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.kernels import Installed, Need

ROOT = Path(__file__).parents[2]
A100, L40S, H100, B200, RTX = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)
CUDNN = (9, 10, 2)


@pytest.mark.parametrize(
    ("mode", "engine", "window", "said"),
    [
        ("p2p", "2.9.0+70f53666", False, None),
        ("p2p", "2.9.0a0+nv25.10", False, None),
        ("p2p", "2.11.0", True, "sliding-window attention needs a2a: use parallel.cp_comm_type=a2a"),
        ("p2p", None, False, "Transformer Engine is not installed: install transformer-engine[pytorch]==2.11.0"),
        ("a2a", "2.9.0", False, "from 2.10 on, and 2.9.0 is installed: use parallel.cp_comm_type=p2p or transformer-en"),
        ("a2a", "2.9.0", True, "2.9.0 is installed: use transformer-engine==2.11.0"),
        ("a2a", "2.10.0", False, None),
        ("a2a", "2.12.0+5671fd36", True, None),
        ("a2a", "2.18.0", True, None),
    ],
)  # fmt: skip
def test_a_context_mode_needs_its_version(mode: str, engine: str | None, window: bool, said: str | None) -> None:
    on, need = Installed(engine), Need("bf16", window=window, mode=mode)
    assert kernels.takes_mode(mode, on, window) is (said is None)
    if said is None:
        assert kernels.choose_layers("transformer_engine", on, need).name == "transformer_engine"
    else:
        with pytest.raises(UserError, match=re.escape(said)):
            kernels.choose_layers("transformer_engine", on, need)


GEMMA3 = FAMILIES["gemma3_text"].own


@pytest.mark.parametrize(
    ("wish", "on", "need", "layers", "why"),
    [
        ("auto", None, Need("fp32"), "torch", "there is no GPU"),
        ("torch", None, Need("bf16"), "torch", "there is no GPU"),
        ("auto", Installed("2.11.0"), Need("bf16"), "transformer_engine", "Transformer Engine 2.11.0 is installed"),
        ("auto", Installed(None, chip=H100), Need("bf16", 128), "torch", "Transformer Engine is not installed"),
        ("auto", Installed("2.11.0"), Need("fp32"), "torch", "takes bf16 alone"),
        ("auto", Installed("2.9.0"), Need("bf16", mode="a2a"), "torch", "from 2.10 on, and 2.9.0 is installed"),
        ("auto", Installed("2.9.0", "2.8.3", CUDNN, A100), Need("bf16", 128), "torch", "no attention kernel"),
        ("torch", Installed("2.11.0"), Need("bf16", 128, mode="p2p"), "torch", "model.layers=torch"),
        ("auto", Installed("2.11.0"), Need("bf16", own=GEMMA3), "torch", "have no norms behind attention and MLP and no"),
        ("torch", Installed(None, chip=(7, 5)), Need("fp32", 100), "torch", "model.layers=torch"),
    ],
)  # fmt: skip
def test_the_layers_are_chosen_once(wish: str, on: Installed | None, need: Need, layers: str, why: str) -> None:
    chosen = kernels.choose_layers(wish, on, need)
    assert chosen.name == layers
    assert why in chosen.why


@pytest.mark.parametrize(
    ("wish", "on", "need", "said"),
    [
        ("transformer_engine", None, Need("fp32"), "needs a GPU, and this run has none: set model.layers=auto"),
        ("transformer_engine", Installed("2.11.0"), Need("fp32"), "set trainer.precision=bf16, or set model.layers=torch"),
        ("transformer_engine", Installed("2.11.0"), Need("bf16", own=GEMMA3), "rotary base for each kind of layer"),
        ("torch", Installed(None, chip=(7, 5)), Need("bf16"), "this GPU has 7.5: set trainer.precision=fp32"),
        ("auto", Installed(None, chip=(7, 5)), Need("bf16"), "model.layers=auto: torch's packed attention"),
        ("torch", Installed(None, chip=H100), Need("bf16", 100), "the model's have 100: set trainer.precision=fp32"),
        ("auto", None, Need("fp32", window=True, mode="p2p"), "sliding-window attention needs a2a"),
        ("auto", Installed(None), Need("fp32", window=True, mode="p2p"), "sliding-window attention needs a2a"),
    ],
)  # fmt: skip
def test_layers_that_do_not_run_are_refused(wish: str, on: Installed | None, need: Need, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        kernels.choose_layers(wish, on, need)


def test_the_layers_of_the_cpu_have_both_modes_and_windows_in_one() -> None:
    assert [kernels.takes_mode(mode, None) for mode in kernels.CONTEXT_MODES] == [True, True, False, False]
    assert [kernels.takes_mode(mode, None, window=True) for mode in kernels.OFFERED] == [False, True]


@pytest.mark.parametrize(("mode", "said"), [("all_gather", "from 2.18 on, and this project"), ("a2a+p2p", "not take")])
def test_a_mode_that_is_not_here_says_why(mode: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_config("solo_dpo", [f"parallel.cp_comm_type={mode}"])


@pytest.mark.parametrize(
    ("on", "head_dim", "said"),
    [
        # the set that gpu.txt named before: on A100 and L40S it had no attention
        (Installed("2.9.0", "2.8.3", CUDNN, A100), 128, "flash-attn 2.8.3 is outside 2.1.1 to 2.8.1"),
        (Installed("2.9.0", "2.8.3", CUDNN, L40S), 128, "install flash-attn 2.8.1"),
        (Installed("2.9.0", "2.8.1", CUDNN, A100), 128, None),
        (Installed("2.11.0", "2.8.3", CUDNN, A100), 128, None),
        (Installed("2.11.0", None, CUDNN, A100), 128, "flash-attn is not installed; cuDNN takes packed sequences from 9.0"),
        (Installed("2.11.0", "2.8.3", CUDNN, (7, 5)), 128, "flash-attn needs 8.0"),
        (Installed("2.9.0", "2.8.3", CUDNN, H100), 128, None),
        (Installed("2.11.0", None, CUDNN, H100), 256, None),
        (Installed("2.11.0", None, (9, 5, 1), H100), 128, "cuDNN 9.5.1 does not take them (9.6 and newer do)"),
        (Installed("2.11.0", None, (9, 10, 1), H100), 128, "cuDNN 9.10.1 does not take them"),
        (Installed("2.11.0", None, CUDNN, B200), 128, None),
        (Installed("2.11.0", "2.7.2", CUDNN, RTX), 128, "flash-attn 2.7.2 is outside 2.7.3 to 2.8.3"),
        (Installed("2.11.0", "2.8.3", CUDNN, RTX), 128, None),
        (Installed("2.11.0", "2.8.3", CUDNN, L40S), 256, "flash-attn does not take heads of 256"),
        (Installed("2.11.0", "2.8.3", CUDNN, H100), 100, "cuDNN does not take heads of 100"),
        (Installed("2.11.0", None, None, None), 128, None),  # a machine that nobody asked
    ],
)  # fmt: skip
def test_a_chip_without_a_kernel_is_refused(on: Installed, head_dim: int, said: str | None) -> None:
    refused = kernels.engine_refuses(on, Need("bf16", head_dim))
    assert (refused is None) if said is None else (said in str(refused))


@pytest.mark.parametrize(
    ("given", "engine", "said"),
    [
        ([], "2.11.0", None),
        ([], None, None),
        (["trainer.precision=fp32"], "2.11.0", None),
        (["trainer.precision=fp32", "model.layers=transformer_engine"], "2.11.0", "takes bf16 alone"),
        (["model.layers=transformer_engine"], None, "Transformer Engine is not installed"),
    ],
)
def test_what_every_run_on_a_gpu_needs(
    given: list[str], engine: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the checks of a start, as a run goes through them on every rank before any work."""
    from solopo_nemo.training.checks import EVERYWHERE, check_all
    from solopo_nemo.training.start import Start

    monkeypatch.setattr(Installed, "here", classmethod(lambda cls: cls(engine)))
    monkeypatch.setattr(device, "cuda", lambda: True)  # on a machine without, the planned set counts
    config = load_config("solo_dpo", ["output_dir=x", *given])
    if said is None:
        check_all(Start(config, 1, on_gpu=True), EVERYWHERE)
    else:
        with pytest.raises(UserError, match=re.escape(said)):
            check_all(Start(config, 1, on_gpu=True), EVERYWHERE)


@pytest.mark.parametrize(("engine", "modes"), [("2.9.0", {"p2p"}), ("2.11.0", {"p2p", "a2a"})])
def test_the_planner_offers_what_the_engine_takes(
    engine: str, modes: set[str], qwen: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Installed, "planned", classmethod(lambda cls: cls(engine)))
    config = load_config("solo_dpo", ["output_dir=x", "trainer.global_batch=8"])
    layouts = list(valid_layouts(config, qwen, 8, 8))
    assert {layout.cp_comm_type for layout in layouts if layout.context > 1} == modes


def test_a_windowed_model_with_an_old_engine_has_torchs_layers(
    qwen: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    windowed = dataclasses.replace(qwen, sliding_window=4096, sliding_layers=(True,) * qwen.num_hidden_layers)
    config = load_config("solo_dpo", ["output_dir=x", "parallel.context=2", "parallel.cp_comm_type=a2a"])
    monkeypatch.setattr(Installed, "planned", classmethod(lambda cls: cls("2.9.0")))
    assert [check_context(config, windowed, on_gpu).name for on_gpu in (False, True)] == ["torch", "torch"]
    config.model.layers = "transformer_engine"
    with pytest.raises(UserError, match=r"from 2\.10 on"):
        check_context(config, windowed, on_gpu=True)


@pytest.fixture
def qwen() -> ModelDescription:
    from solopo_nemo.planning import load_shape

    return load_shape("Qwen/Qwen2.5-7B-Instruct")


def test_the_pinned_set_is_one_that_fits() -> None:
    lines = (line.split("#")[0].strip() for line in (ROOT / "requirements" / "gpu.txt").read_text().splitlines())
    pins = {r.name: next(iter(r.specifier)).version for r in map(Requirement, filter(None, lines))}
    assert {name: pins[name] for name in kernels.PINNED} == kernels.PINNED
    for chip in (A100, L40S, H100, B200, RTX):
        on = Installed(pins["transformer-engine"], pins["flash-attn"], CUDNN, chip)
        assert kernels.engine_refuses(on, Need("bf16", 128)) is None
        assert all(kernels.takes_mode(mode, on) for mode in kernels.OFFERED)


def test_the_documentation_shows_the_table() -> None:
    page, no = (ROOT / "docs" / "parallelism.md").read_text(), {True: "yes", False: "no"}
    for name, mode in kernels.CONTEXT_MODES.items():
        since = f"from {mode.since}" if mode.since else "no version"
        assert f"| `{name}` | {since} | {no[mode.windows]} | {no[mode.splits_heads]} | {no[mode.ours]} |" in page
    for oldest, newest in kernels.FLASH_ATTENTION.values():
        assert f"| {oldest} to {newest} |" in page


def test_a_machine_without_cuda_has_no_chip() -> None:
    if not device.cuda():
        assert (device.capability(), device.cudnn_version()) == (None, None)
