"""What attention takes: each context mode, window, head size, type and chip, by version; one table for every reader.

Example: ``parallel.cp_comm_type=a2a`` with Transformer Engine 2.9 is refused before any work, and the planner does not
offer it, because :data:`CONTEXT_MODES` says that it takes packed sequences from 2.10.

A comment names the source of each entry. Files are Transformer Engine's at the tag that the comment names: ``cp`` is
``pytorch/attention/dot_product_attention/context_parallel.py``, ``utils`` and ``backends`` lie beside it, and ``cudnn``
is ``common/fused_attn/fused_attn.cpp``. Read at 2.9 to 2.18; no line was run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

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

NO_ENGINE = (
    "CUDA is present but Transformer Engine is not: install transformer-engine[pytorch]"
    f"=={PINNED['transformer-engine']} (requirements/gpu.txt), or set CUDA_VISIBLE_DEVICES= to train on the CPU"
)


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


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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


def check_mode(mode: str, on: Installed | None, window: bool) -> None:
    """Check a context mode of more than one rank.

    Raises:
        UserError: the installed set, or the model's sliding window, does not go with it; with what does.
    """
    if takes_mode(mode, on, window):
        return
    row = CONTEXT_MODES[mode]
    others = [f"parallel.cp_comm_type={name}" for name in OFFERED if takes_mode(name, on, window)]
    if window and not row.windows:
        why = "the model's sliding-window attention needs " + " or ".join(
            name for name in OFFERED if CONTEXT_MODES[name].windows
        )
    else:
        assert on is not None
        have = f"{on.engine} is installed" if on.engine else "it is not installed"
        why = f"Transformer Engine takes it for packed sequences from {row.since} on, and {have}"
        others.append(f"transformer-engine=={PINNED['transformer-engine']}")
    if not others:
        others = ["parallel.context=1", f"transformer-engine=={PINNED['transformer-engine']}"]
    raise UserError(f"parallel.cp_comm_type={mode}: {why}: use {' or '.join(others)}")


def check_device(precision: str | None, on: Installed | None) -> None:
    """Check what a run on a GPU needs of any model.

    Args:
        precision: ``trainer.precision``; None is the device's own.
        on: what is installed; None is the CPU, which needs nothing.

    Raises:
        UserError: Transformer Engine is missing, or the precision does not run.
    """
    if on is None:
        return
    require(on.engine is not None, NO_ENGINE)
    require(
        precision is None or precision in PRECISIONS,
        f"trainer.precision={precision}: on a GPU packed attention takes {', '.join(PRECISIONS)} alone; set "
        f"trainer.precision={PRECISIONS[0]}, or CUDA_VISIBLE_DEVICES= to train on the CPU",
    )


def check_attention(head_dim: int, on: Installed | None) -> None:
    """Check that a kernel is left for packed sequences; nothing is refused where the chip is not known.

    Raises:
        UserError: there is none, with the reason for each.
    """
    if on is None or on.engine is None or on.chip is None:
        return
    refusals = [reason for reason in (_flash_refuses(on, head_dim), _cudnn_refuses(on, head_dim)) if reason]
    if len(refusals) == 2:
        newest = flash_bounds(on.engine)[1]
        raise UserError(
            f"no attention kernel for packed sequences on compute capability {_dotted(on.chip)}: {'; '.join(refusals)}"
            f": install flash-attn {newest} (transformer-engine {on.engine} takes up to it)"
        )


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
