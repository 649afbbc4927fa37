"""What attention takes: each context mode, window, head size, type and chip, by version; one table for every reader.

Example: with Transformer Engine 2.9 and ``parallel.cp_comm_type=a2a`` a run takes torch's layers, and
``model.layers=transformer_engine`` is refused before any work, because :data:`CONTEXT_MODES` says that Transformer
Engine takes packed sequences there from 2.10. :func:`choose_layers` decides it.

A comment names the source of each entry. Files are Transformer Engine's at the tag that the comment names: ``cp`` is
``pytorch/attention/dot_product_attention/context_parallel.py``, ``utils`` and ``backends`` lie beside it, and ``cudnn``
is ``common/fused_attn/fused_attn.cpp``. Read at 2.9 to 2.18; no line was run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

from packaging.version import Version

from solopo_nemo.runtime import device
from solopo_nemo.runtime.errors import UserError, require


@dataclass(frozen=True)
class ContextMode:
    """What one way of context parallelism takes, with packed (THD) sequences.

    Attributes:
        since: Transformer Engine from which it takes them; None: none that was read does.
        ours: this project packs and communicates for it; its layers for the CPU have it.
        windows: sliding windows too.
        splits_heads: the ranks share the heads, which they have to divide.
    """

    since: str | None
    ours: bool = False
    windows: bool = False
    splits_heads: bool = False


CONTEXT_MODES = {
    # v2.9 cp:1260 takes thd; cp:3806-3809 takes windows in a2a and all_gather alone
    "p2p": ContextMode("2.9", ours=True),
    # v2.9 cp:3142 and 3193 refuse padding masks and thd, v2.10 cp:3316 takes them; v2.10 cp:3377: divided heads
    "a2a": ContextMode("2.10", ours=True, windows=True, splits_heads=True),
    # v2.10 cp:2842 to v2.17.1 cp:3064 refuse thd, v2.18 cp:3075 takes it
    "all_gather": ContextMode("2.18", windows=True),
    # v2.9 cp:3770 to v2.18 cp:5021 refuse thd
    "a2a+p2p": ContextMode(None, splits_heads=True),
}
OFFERED = tuple(name for name, mode in CONTEXT_MODES.items() if mode.ours)
"""The values of ``parallel.cp_comm_type``."""

FLASH_ATTENTION = {  # newest first
    "2.10": ("2.1.1", "2.8.3"),  # v2.10 utils:116-118, the same in v2.18 utils:121-123
    "2.9": ("2.1.1", "2.8.1"),  # v2.9 utils:116-118, and backends:83-88 leaves a newer one unused
}
"""Oldest and newest flash-attn, by the Transformer Engine that takes it."""
FLASH_ATTENTION_BLACKWELL = "2.7.3"  # v2.9 utils:117, backends:84
"""Oldest flash-attn for compute capability 10.0 and newer."""
PRECISIONS = ("bf16",)  # v2.9 utils:428-448: fp16 and bf16, of which this project trains in bf16
"""``trainer.precision`` that the packed attention of a GPU takes."""
OLDEST_CHIP = (8, 0)  # v2.9 utils:415-421
CUDNN_CHIP, CUDNN_OLDEST = (9, 0), (9, 6)  # v2.9 cudnn:327-329: packed sequences with grouped heads
CUDNN_BROKEN = ((9, 10, 0), (9, 10, 1))  # v2.9 cudnn:366
CUDNN_REFUSES = (12, 0)  # v2.9 utils:672-678; v2.18 utils:993 takes it with cuDNN 9.18.1
PINNED = {"transformer-engine": "2.11.0", "flash-attn": "2.8.3"}
"""What ``requirements/gpu.txt`` installs, and what the planner plans for on a machine without Transformer Engine."""

ENGINE, TORCH = "transformer_engine", "torch"
LAYERS = ("auto", ENGINE, TORCH)
"""The values of ``model.layers``."""
WIDEST_HEAD = 256  # flash_api.cpp of torch 2.9 to 2.13: so wide, and a multiple of 8


@dataclass(frozen=True)
class Installed:
    """What this machine has, or a cluster's machines have.

    Attributes:
        engine: Transformer Engine's version; None: it is not installed.
        flash: flash-attn's.
        cudnn: cuDNN's version, such as ``(9, 10, 2)``; None: not known.
        chip: compute capability, such as ``(9, 0)``; None: not known.
    """

    engine: str | None
    flash: str | None = None
    cudnn: tuple[int, ...] | None = None
    chip: tuple[int, int] | None = None

    @classmethod
    def here(cls) -> Installed:
        """This machine."""
        return cls(_version("transformer-engine"), _version("flash-attn"), device.cudnn_version(), device.capability())

    @classmethod
    def planned(cls) -> Installed:
        """The machines of a plan: this one where it has Transformer Engine, else :data:`PINNED`, chip not known."""
        return cls.here() if _version("transformer-engine") else cls(PINNED["transformer-engine"], PINNED["flash-attn"])

    @classmethod
    def of_run(cls, on_gpu: bool) -> Installed | None:
        """Where a run computes: this machine if it has a GPU, else the planned ones; None for a run on CPUs."""
        if not on_gpu:
            return None
        return cls.here() if device.cuda() else cls.planned()


@dataclass(frozen=True)
class Need:
    """What a run asks of its attention.

    Attributes:
        precision: ``bf16`` or ``fp32``.
        head_dim: of the model; None: not known yet.
        window: the model has sliding windows.
        mode: of context parallelism; None: there is one context rank.
        own: what Transformer Engine's layers lack of the model; empty: nothing.
    """

    precision: str
    head_dim: int | None = None
    window: bool = False
    mode: str | None = None
    own: str = ""


def lacking(post_norms: bool, local_base: bool) -> str:
    """What Transformer Engine's layers in Megatron-core lack of a model, for messages; empty: nothing.

    Args:
        post_norms: the model normalizes the outputs of attention and MLP.
        local_base: its sliding-window layers have a rotary base of their own.
    """
    parts = {"norms behind attention and MLP": post_norms, "rotary base for each kind of layer": local_base}
    return " and no ".join(part for part, asked in parts.items() if asked)


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_experts() -> None:
    """Refuse models with experts on a Megatron-core without a router of one's own and its padding (before 0.16).

    Raises:
        UserError: with the remedy.
    """
    found = _version("megatron-core")
    require(
        found is None or _at_least(found, "0.16"),
        f"megatron-core {found}: models with experts take 0.16 or later; requirements/ has the pinned version",
    )


def _at_least(found: str, wanted: str) -> bool:
    """Compare releases: NVIDIA's 2.9.0a0+nv25.10 is what became 2.9.0."""
    return Version(Version(found).base_version) >= Version(wanted)


def flash_bounds(engine: str) -> tuple[str, str]:
    """Oldest and newest flash-attn that a Transformer Engine takes."""
    return next((bounds for since, bounds in FLASH_ATTENTION.items() if _at_least(engine, since)), ("0", "0"))


def takes_mode(mode: str, on: Installed | None, window: bool = False) -> bool:
    """Whether a context mode runs with packed sequences; ``on=None`` is the CPU, where this project's layers run."""
    row = CONTEXT_MODES[mode]
    if not row.ours or (window and not row.windows):
        return False
    return on is None or (on.engine is not None and row.since is not None and _at_least(on.engine, row.since))


def check_offered(mode: str) -> None:
    """Check a context mode against what this project has at all; an unknown word is left to the option's own check.

    Raises:
        UserError: Megatron-core has it, and packed sequences do not run with it.
    """
    row = CONTEXT_MODES.get(mode)
    if row is not None and not row.ours:
        takes = f"takes it from {row.since} on, and this project does not" if row.since else "does not take it"
        raise UserError(
            f"parallel.cp_comm_type={mode}: for packed (THD) sequences, as triplets run, Transformer Engine {takes}; "
            "p2p has no limit but the length, a2a sends less where the heads divide"
        )


class Layers(NamedTuple):
    """The layers of a run, ``transformer_engine`` or ``torch``, and why it takes these."""

    name: str
    why: str


def choose_layers(wish: str, on: Installed | None, need: Need) -> Layers:
    """Which layers a run takes; every check, planner and model asks here.

    ``auto`` is Transformer Engine where it is installed and takes what the run needs, else torch.

    Args:
        wish: ``model.layers``.
        on: what is installed; None is a CPU.
        need: of the run.

    Raises:
        UserError: the wish, or for ``auto`` either, does not run; with the remedy.
    """
    if need.mode and need.window and not CONTEXT_MODES[need.mode].windows:
        wanted = next(name for name in OFFERED if CONTEXT_MODES[name].windows)
        raise UserError(
            f"parallel.cp_comm_type={need.mode}: the model's sliding-window attention needs {wanted}: use "
            f"parallel.cp_comm_type={wanted}"
        )
    if on is None:
        require(
            wish != ENGINE,
            "model.layers=transformer_engine: Transformer Engine needs a GPU, and this run has none: set "
            "model.layers=auto, which takes torch's layers on a CPU",
        )
        return Layers(TORCH, "there is no GPU")
    engine = engine_refuses(on, need)
    if wish == ENGINE and engine:
        raise UserError(f"model.layers=transformer_engine: {engine}, or set model.layers=torch")
    if wish != TORCH and engine is None:
        return Layers(ENGINE, f"Transformer Engine {on.engine} is installed")
    if ours := torch_refuses(on, need):
        raise UserError(f"model.layers={wish}: {ours}" + (f" (or: {engine})" if wish != TORCH else ""))
    return Layers(TORCH, f"model.layers={TORCH}" if wish == TORCH else str(engine))


def engine_refuses(on: Installed, need: Need) -> str | None:
    """Why Transformer Engine does not run what is needed, with the remedy; None if it does."""
    if on.engine is None:
        return (
            "Transformer Engine is not installed: install transformer-engine[pytorch]"
            f"=={PINNED['transformer-engine']} (tools/setup.sh --engine)"
        )
    if need.own:
        return f"Megatron-core's layers of Transformer Engine have no {need.own}: set model.layers=auto"
    if need.precision not in PRECISIONS:
        return (
            f"Transformer Engine's packed attention takes {', '.join(PRECISIONS)} alone: set "
            f"trainer.precision={PRECISIONS[0]}"
        )
    if need.mode and not takes_mode(need.mode, on, need.window):
        others = [f"parallel.cp_comm_type={name}" for name in OFFERED if takes_mode(name, on, need.window)]
        others.append(f"transformer-engine=={PINNED['transformer-engine']}")
        return (
            f"Transformer Engine takes parallel.cp_comm_type={need.mode} for packed sequences from "
            f"{CONTEXT_MODES[need.mode].since} on, and {on.engine} is installed: use {' or '.join(others)}"
        )
    if on.chip is None or need.head_dim is None:  # nobody asked yet
        return None
    refusals = [reason for reason in (_flash_refuses(on, need.head_dim), _cudnn_refuses(on, need.head_dim)) if reason]
    if len(refusals) < 2:
        return None
    newest = flash_bounds(on.engine)[1]
    return (
        f"Transformer Engine has no attention kernel for packed sequences on compute capability {_dotted(on.chip)}: "
        f"{'; '.join(refusals)}: install flash-attn {newest} (transformer-engine {on.engine} takes up to it)"
    )


def torch_refuses(on: Installed, need: Need) -> str | None:
    """Why torch's packed attention does not run what is needed on a GPU, with the remedy; None if it does.

    In fp32 its memory-efficient kernel runs, which takes any chip that torch takes, and any head.
    """
    if need.precision == "fp32":
        return None
    if on.chip is not None and on.chip < OLDEST_CHIP:
        return (
            f"torch's packed attention takes bf16 from compute capability {_dotted(OLDEST_CHIP)} on, and this GPU has "
            f"{_dotted(on.chip)}: set trainer.precision=fp32"
        )
    if need.head_dim is not None and (need.head_dim % 8 or need.head_dim > WIDEST_HEAD):
        return (
            f"torch's packed attention takes bf16 heads up to {WIDEST_HEAD}, in multiples of 8, and the model's have "
            f"{need.head_dim}: set trainer.precision=fp32"
        )
    return None


def _flash_refuses(on: Installed, head_dim: int) -> str | None:
    """Why flash-attn is not used."""
    assert on.engine is not None and on.chip is not None
    oldest, newest = flash_bounds(on.engine)
    oldest = FLASH_ATTENTION_BLACKWELL if on.chip >= (10, 0) else oldest
    if on.flash is None:
        return "flash-attn is not installed"
    if not (_at_least(on.flash, oldest) and Version(Version(on.flash).base_version) <= Version(newest)):
        return f"flash-attn {on.flash} is outside {oldest} to {newest}, which Transformer Engine {on.engine} takes"
    if on.chip < OLDEST_CHIP:
        return f"flash-attn needs {_dotted(OLDEST_CHIP)}"
    # v2.9 utils:603-611
    wide = on.chip in ((8, 0), (9, 0), (10, 0), (12, 0))
    if head_dim % 8 or head_dim > (256 if wide else 192):
        return f"flash-attn does not take heads of {head_dim}"
    return None


def _cudnn_refuses(on: Installed, head_dim: int) -> str | None:
    """Why cuDNN's fused attention is not used."""
    assert on.chip is not None
    if on.chip < CUDNN_CHIP or on.chip == CUDNN_REFUSES:
        refused = f" and not {_dotted(CUDNN_REFUSES)}" if on.chip == CUDNN_REFUSES else ""
        return f"cuDNN takes packed sequences from {_dotted(CUDNN_CHIP)} on{refused}"
    if on.cudnn is not None and (on.cudnn < CUDNN_OLDEST or on.cudnn in CUDNN_BROKEN):
        return f"cuDNN {_dotted(on.cudnn)} does not take them ({_dotted(CUDNN_OLDEST)} and newer do)"
    # v2.9 cudnn:237-243: up to 128, on Hopper up to 256
    if head_dim % 8 or head_dim > (256 if on.chip[0] == 9 else 128):
        return f"cuDNN does not take heads of {head_dim}"
    return None


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
