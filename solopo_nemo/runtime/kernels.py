"""Which attention kernels support a run: by context mode, window, head size, dtype, GPU and installed versions.

Example: with Transformer Engine 2.9 and ``parallel.cp_comm_type=a2a`` a run takes torch's layers, and
``model.layers=transformer_engine`` is refused before any work, because Transformer Engine supports packed sequences in
this mode from 2.10 (:data:`CONTEXT_MODES`). :func:`choose_layers` decides it.

A comment gives the source of each entry in Transformer Engine's repository at the named tag: ``cp`` is
``pytorch/attention/dot_product_attention/context_parallel.py``, ``utils`` and ``backends`` are in the same folder, and
``cudnn`` is ``common/fused_attn/fused_attn.cpp``. Read at 2.9 to 2.18; no line was run on a GPU.
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
    """Support of one mode of context parallelism for packed (THD) sequences.

    Attributes:
        since: first version of Transformer Engine that supports it; None if no version that was read does.
        ours: whether this project supports the mode: packing, and its own layers.
        windows: whether the mode supports sliding windows.
        splits_heads: whether the heads are split over the ranks, so that the ranks must divide them.
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
"""Oldest and newest supported flash-attn, by the first version of Transformer Engine with this range."""
FLASH_ATTENTION_BLACKWELL = "2.7.3"  # v2.9 utils:117, backends:84
"""Oldest flash-attn for compute capability 10.0 and newer."""
PRECISIONS = ("bf16",)  # v2.9 utils:428-448: fp16 and bf16, of which this project trains in bf16
"""Values of ``trainer.precision`` that Transformer Engine's packed attention supports."""
OLDEST_CHIP = (8, 0)  # v2.9 utils:415-421
CUDNN_CHIP, CUDNN_OLDEST = (9, 0), (9, 6)  # v2.9 cudnn:327-329: packed sequences with grouped heads
CUDNN_BROKEN = ((9, 10, 0), (9, 10, 1))  # v2.9 cudnn:366
CUDNN_REFUSES = (12, 0)  # v2.9 utils:672-678; v2.18 utils:993 takes it with cuDNN 9.18.1
PINNED = {"transformer-engine": "2.11.0", "flash-attn": "2.8.3"}
"""The versions in ``requirements/gpu.txt``, which the planner assumes on a machine without Transformer Engine."""

ENGINE, TORCH = "transformer_engine", "torch"
LAYERS = ("auto", ENGINE, TORCH)
"""The values of ``model.layers``."""
WIDEST_HEAD = 256  # flash_api.cpp of torch 2.9 to 2.13: at most 256, and a multiple of 8


@dataclass(frozen=True)
class Installed:
    """The installed versions and the GPU of this machine, or of a cluster's machines.

    Attributes:
        engine: version of Transformer Engine; None if it is not installed.
        flash: version of flash-attn; None if it is not installed.
        cudnn: version of cuDNN, such as ``(9, 10, 2)``; None if unknown.
        chip: compute capability, such as ``(9, 0)``; None if unknown.
    """

    engine: str | None
    flash: str | None = None
    cudnn: tuple[int, ...] | None = None
    chip: tuple[int, int] | None = None

    @classmethod
    def here(cls) -> Installed:
        """This machine."""
        return cls(
            version_of("transformer-engine"), version_of("flash-attn"), device.cudnn_version(), device.capability()
        )

    @classmethod
    def planned(cls) -> Installed:
        """The machines of a plan: this machine if it has Transformer Engine, else :data:`PINNED` and an unknown GPU."""
        pinned = PINNED["transformer-engine"], PINNED["flash-attn"]
        return cls.here() if version_of("transformer-engine") else cls(*pinned)

    @classmethod
    def of_run(cls, on_gpu: bool) -> Installed | None:
        """The machines of a run: this machine if it has a GPU, else :meth:`planned`; None for a run on CPUs."""
        if not on_gpu:
            return None
        return cls.here() if device.cuda() else cls.planned()


@dataclass(frozen=True)
class Need:
    """The requirements of a run on its attention.

    Attributes:
        precision: ``bf16`` or ``fp32``.
        head_dim: head size of the model; None if it is not known yet.
        window: whether the model has sliding windows.
        mode: mode of context parallelism; None with one context rank.
        own: what the model needs and Transformer Engine's layers lack (:func:`lacking`); empty if they lack nothing.
    """

    precision: str
    head_dim: int | None = None
    window: bool = False
    mode: str | None = None
    own: str = ""


def lacking(post_norms: bool, local_base: bool) -> str:
    """What a model needs and Megatron-core's layers of Transformer Engine lack, in words; empty if they lack nothing.

    Args:
        post_norms: whether the model normalizes the outputs of attention and MLP.
        local_base: whether the sliding-window layers have a rotary base of their own.
    """
    parts = {"norms behind attention and MLP": post_norms, "rotary base for each kind of layer": local_base}
    return " and no ".join(part for part, asked in parts.items() if asked)


@cache
def version_of(package: str) -> str | None:
    """The installed version of a package; None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_experts() -> None:
    """Refuses models with experts on a Megatron-core before 0.16, whose routers cannot ignore padding.

    Raises:
        UserError: with the required version.
    """
    found = version_of("megatron-core")
    require(
        found is None or _at_least(found, "0.16"),
        f"megatron-core {found}: models with experts take 0.16 or later; requirements/ has the pinned version",
    )


def _at_least(found: str, wanted: str) -> bool:
    """Whether a version is at least another by release numbers: NVIDIA's 2.9.0a0+nv25.10 counts as 2.9.0."""
    return Version(Version(found).base_version) >= Version(wanted)


def flash_bounds(engine: str) -> tuple[str, str]:
    """Oldest and newest flash-attn that a version of Transformer Engine supports."""
    return next((bounds for since, bounds in FLASH_ATTENTION.items() if _at_least(engine, since)), ("0", "0"))


def takes_mode(mode: str, on: Installed | None, window: bool = False) -> bool:
    """Whether a context mode runs with packed sequences.

    Args:
        mode: key of :data:`CONTEXT_MODES`.
        on: the machine; None is a CPU, where this project's layers run.
        window: whether the model has sliding windows.
    """
    row = CONTEXT_MODES[mode]
    if not row.ours or (window and not row.windows):
        return False
    return on is None or (on.engine is not None and row.since is not None and _at_least(on.engine, row.since))


def check_offered(mode: str) -> None:
    """Refuses a context mode of Megatron-core that this project does not support.

    A word that is no mode at all is refused by the check of the option.

    Raises:
        UserError: packed sequences do not run in this mode here.
    """
    row = CONTEXT_MODES.get(mode)
    if row is not None and not row.ours:
        takes = f"takes it from {row.since} on, and this project does not" if row.since else "does not take it"
        raise UserError(
            f"parallel.cp_comm_type={mode}: for packed (THD) sequences, as triplets run, Transformer Engine {takes}; "
            "p2p has no limit but the length, a2a sends less where the heads divide"
        )


class Layers(NamedTuple):
    """The layers of a run, ``transformer_engine`` or ``torch``, and the reason for them."""

    name: str
    why: str


def choose_layers(wish: str, on: Installed | None, need: Need) -> Layers:
    """Chooses the layers of a run, for all checks, the planner and the model.

    ``auto`` is Transformer Engine if it is installed and supports the run, else torch.

    Args:
        wish: value of ``model.layers``.
        on: the machine; None is a CPU.
        need: requirements of the run.

    Raises:
        UserError: the chosen layers do not run, or for ``auto`` neither does; with the remedy.
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
    """The reason why Transformer Engine does not support the run, with the remedy; None if it does."""
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
    if on.chip is None or need.head_dim is None:  # not known yet
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
    """The reason why torch's packed attention does not support the run on a GPU, with the remedy; None if it does.

    In fp32 the memory-efficient kernel runs, which supports every GPU of torch and every head size.
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
    """The reason why Transformer Engine does not use flash-attn; None if it does."""
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
    """The reason why Transformer Engine does not use cuDNN's fused attention; None if it does."""
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
