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
from solopo_nemo.planning.search import valid_layouts
from solopo_nemo.planning.shape import ModelShape
from solopo_nemo.runtime import device, kernels
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.kernels import Installed

ROOT = Path(__file__).parents[2]
A100, L40S, H100, B200, RTX = (8, 0), (8, 9), (9, 0), (10, 0), (12, 0)
CUDNN = (9, 10, 2)


@pytest.mark.parametrize(
    ("mode", "engine", "window", "said"),
    [
        ("p2p", "2.9.0+70f53666", False, None),
        ("p2p", "2.9.0a0+nv25.10", False, None),
        ("p2p", "2.11.0", True, "sliding-window attention needs a2a: use parallel.cp_comm_type=a2a"),
        ("p2p", "2.9.0", True, "sliding-window attention needs a2a: use parallel.context=1 or transformer-engine==2.11.0"),
        ("p2p", None, False, "from 2.9 on, and it is not installed: use transformer-engine==2.11.0"),
        ("a2a", "2.9.0", False, "from 2.10 on, and 2.9.0 is installed: use parallel.cp_comm_type=p2p or transformer-en"),
        ("a2a", "2.9.0", True, "2.9.0 is installed: use transformer-engine==2.11.0"),
        ("a2a", "2.10.0", False, None),
        ("a2a", "2.12.0+5671fd36", True, None),
        ("a2a", "2.18.0", True, None),
    ],
)  # fmt: skip
def test_a_context_mode_needs_its_version(mode: str, engine: str | None, window: bool, said: str | None) -> None:
    on = Installed(engine)
    assert kernels.takes_mode(mode, on, window) is (said is None)
    if said is None:
        kernels.check_mode(mode, on, window)
    else:
        with pytest.raises(UserError, match=re.escape(said)):
            kernels.check_mode(mode, on, window)


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
    if said is None:
        kernels.check_attention(head_dim, on)
    else:
        with pytest.raises(UserError, match=re.escape(said)):
            kernels.check_attention(head_dim, on)


@pytest.mark.parametrize(
    ("precision", "engine", "said"),
    [(None, "2.11.0", None), ("bf16", "2.9.0", None), ("fp32", "2.11.0", "trainer.precision=fp32: on a GPU"), (None, None, "Transformer Engine is not: install")],
)  # fmt: skip
def test_what_every_run_on_a_gpu_needs(
    precision: str | None, engine: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the checks of a start, as a run goes through them on every rank before any work."""
    from solopo_nemo.training.checks import EVERYWHERE, Start, check_all

    monkeypatch.setattr(Installed, "here", classmethod(lambda cls: cls(engine)))
    monkeypatch.setattr(device, "cuda", lambda: True)  # on a machine without, the planned set counts
    given = [f"trainer.precision={precision}"] if precision else []
    config = load_config("solo_dpo", ["output_dir=x", *given])
    check_all(Start(config, 1, on_gpu=False), EVERYWHERE)
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


def test_a_windowed_model_with_an_old_engine_has_no_context_parallelism(
    qwen: ModelShape, monkeypatch: pytest.MonkeyPatch
) -> None:
    windowed = dataclasses.replace(qwen, sliding_window=4096, sliding_layers=(True,) * qwen.num_hidden_layers)
    config = load_config("solo_dpo", ["output_dir=x", "parallel.context=2", "parallel.cp_comm_type=a2a"])
    monkeypatch.setattr(Installed, "planned", classmethod(lambda cls: cls("2.9.0")))
    check_context(config.parallel, windowed, on_gpu=False)
    with pytest.raises(UserError, match=r"from 2\.10 on"):
        check_context(config.parallel, windowed, on_gpu=True)


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
        kernels.check_attention(128, on)
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
