"""What a traced step allocates, computes and sends: a dispatch mode that sees every operation of fake tensors."""

from __future__ import annotations

import math
import sys
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from solopo_nemo.planning.dry_run import attention

_READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "equal")
"""Operations whose result the host has to know, by name."""
_OF_WEIGHTS = ("solopo_nemo/core/products.py", "core/layers/", "core/tensor_parallel/layers.py")
"""Files that make the gradients of the layers' weights, as a place names them."""
_NOT_THE_PLACE = (*(f"dry_run/{name}.py" for name in ("tracker", "rank", "report")), "core/cpu_patches.py")
"""Files that stand between an operation and whoever asked for it."""


class HostSync(RuntimeError):
    """The host reads a value that is on the device: it would wait for all that runs there."""


@dataclass(eq=False)
class Storage:
    """A block of memory of the traced rank.

    Attributes:
        bytes: its size.
        operation: name of the operation that made it.
        layer: what the forward pass was in, such as ``decoder.layers.3``; empty outside.
        kind: one of :data:`solopo_nemo.planning.dry_run.report.KINDS`.
        shape, dtype: of the first tensor in it.
        place: ``file:line`` that made it, of a large one.
    """

    bytes: int
    operation: str
    layer: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    place: str

    def __str__(self) -> str:
        where = f" in {self.layer}" if self.layer else ""
        return f"{self.dtype} {list(self.shape)} of {self.operation}{where}{self.place and f' ({self.place})'}"


@dataclass
class Peak:
    """The moment with the most memory.

    Attributes:
        bytes: alive then.
        live: the blocks alive then, largest first.
        moment: ``forward``, ``backward`` or ``optimizer``.
    """

    bytes: int
    live: list[Storage]
    moment: str

    def by(self, attribute: str, *kinds: str) -> dict[str, int]:
        """Bytes by ``kind`` or by ``layer``; of some kinds alone where these are given."""
        sums = Counter[str]()
        for storage in self.live:
            if not kinds or storage.kind in kinds:
                sums[getattr(storage, attribute)] += storage.bytes
        return dict(sums)


@dataclass
class Tracker(TorchDispatchMode):
    """Follows the fake tensors of one rank; enter it inside ``FakeTensorMode``.

    1. Every storage that an operation makes is recorded, and again when it is freed.
    2. Operations are counted by torch's formulas, causal attention as half.
    3. Bytes that the rank sends are counted by process group, collectives as rings.
    4. A read of a device value by the host raises :class:`HostSync` where ``syncs`` is false.

    Operations on real tensors alone, which stay on the host, run as they are and are not counted.

    Attributes:
        groups: name by process-group name.
        syncs: the host may read the device: 1 is what it reads.
        layer: see :class:`Storage`.
        flops, sent: floating-point operations; bytes sent by group.
        operations: how often each operation ran, by name.
        lengths: of the packed sequences, over all context-parallel ranks.
        chosen: experts of each token, by which a selection of tokens has a known size; 0 without experts.
        places_from: bytes from which a tensor's place in the source is kept.
        absent: shapes of gradients that the target does not make, but adds up in place.
        whole: sizes of a dimension that no tensor of a context-parallel rank should have.
        too_long: tensors that have one.
        events: what was allocated (bytes) and freed (negative bytes), in order: bytes, storage, moment.
        transfers: of each collective since :meth:`start`: group, elements, dtype, ranks, and which multiple is sent.
    """

    groups: dict[str, str] = field(default_factory=dict)
    syncs: bool = False
    layer: str = ""
    moment: str = "build"
    flops: float = 0.0
    sent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    operations: Counter[str] = field(default_factory=Counter)
    lengths: Sequence[int] = ()
    chosen: int = 0
    places_from: int = 2**20
    absent: frozenset[tuple[int, ...]] = frozenset()
    whole: frozenset[int] = frozenset()
    too_long: list[Storage] = field(default_factory=list)
    events: list[tuple[int, Storage, str]] = field(default_factory=list)
    transfers: list[tuple[str, int, str, int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._live: dict[int, tuple[Storage, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = [x for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)]
        if given and not any(isinstance(x, FakeTensor) for x in given):
            with no_dispatch():
                return func(*args, **kwargs)
        if name == "masked_select" and self.chosen:  # mask [experts, tokens]
            selected: Any = given[0].new_empty(given[1].shape[1] * self.chosen)
            self.operations[name] += 1
            self._record(selected, name)
            return selected
        if name in _READS and not all(getattr(x, "constant", None) is not None for x in given):
            if not self.syncs:
                raise HostSync(f"{name} reads {given[0].dtype} {list(given[0].shape)} of the device at {_place()}")
            if name == "_local_scalar_dense":
                return 1.0 if given[0].is_floating_point() else 1
        if name.endswith("_coalesced_"):
            out = _coalesced(func, args)
        elif name == "_efficient_attention_backward":  # its fake one lacks the argument `out` (torch 2.9 to 2.13)
            out = (*map(torch.empty_like, args[1:4]), None)
        elif func is torch.ops.aten.mm.dtype:  # torch 2.9 has no fake one
            out = args[0].new_empty(args[0].shape[0], args[1].shape[1], dtype=args[2])
        elif func is torch.ops.aten.mm.dtype_out:
            out = kwargs["out"]
        else:
            out = func(*args, **kwargs)
        self.operations[name] += 1
        if name == "_flash_attention_backward":
            self._pass(name, attention.workspace(*args[1:3]))
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count_traffic(name, args)
        else:
            self._count_operations(func, name, args, kwargs, out)
        for tensor in tree_iter(out):
            if isinstance(tensor, FakeTensor):
                self._record(tensor, name)
        return out

    # ---- memory

    def _record(self, tensor: FakeTensor, operation: str) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        size = storage.nbytes()
        place = _place() if size >= self.places_from else ""
        if tuple(tensor.shape) in self.absent and not self.layer and _place().startswith(_OF_WEIGHTS):
            size = 0
        dtype = str(tensor.dtype).removeprefix("torch.")
        made = Storage(size, operation, self.layer, "temporaries", tuple(tensor.shape), dtype, place)
        if self.whole and tensor.is_floating_point() and self.whole & set(made.shape):
            made.place = made.place or _place()
            self.too_long.append(made)

        def freed(_: Any) -> None:
            del self._live[key]
            self.events.append((-made.bytes, made, self.moment))

        self._live[key] = (made, weakref.ref(storage, freed))
        self.events.append((size, made, self.moment))

    def _pass(self, operation: str, tensors: Iterable[tuple[tuple[int, ...], torch.dtype]]) -> None:
        """Count tensors that an operation makes and frees itself."""
        made = [
            Storage(math.prod(shape) * dtype.itemsize, operation, self.layer, "temporaries", shape, str(dtype)[6:], "")
            for shape, dtype in tensors
        ]
        self.events += [(one.bytes, one, self.moment) for one in made]
        self.events += [(-one.bytes, one, self.moment) for one in made]

    def mark(self, tensors: Iterable[torch.Tensor], kind: str) -> None:
        """Say what the storages of tensors are."""
        for tensor in tensors:
            if found := self._live.get(tensor.untyped_storage()._cdata):
                found[0].kind = kind

    def adopt(self, tensors: Iterable[torch.Tensor], kind: str = "temporaries") -> None:
        """Follow fake tensors that were made outside the mode."""
        for tensor in tensors:
            if isinstance(tensor, FakeTensor) and tensor.untyped_storage()._cdata not in self._live:
                self._record(tensor, "adopted")
                self.mark([tensor], kind)

    def keep(self, kind: str, before: str = "temporaries") -> None:
        """Say what all is that is alive and was ``before``."""
        for made, _ in self._live.values():
            if made.kind == before:
                made.kind = kind

    def start(self, moment: str) -> None:
        """Begin to count; what is alive stays, and the host may read nothing from here on."""
        self.syncs, self.moment = False, moment
        self.events = [(made.bytes, made, "rest") for made, _ in self._live.values()]
        self.flops, self.sent, self.transfers = 0.0, defaultdict(float), []

    def peak(self) -> Peak:
        """The highest moment since :meth:`start`."""
        held = [*accumulate(change for change, _, _ in self.events)]
        most = max(held, default=0)
        at = held.index(most) if held else 0
        live: dict[int, Storage] = {}
        for change, made, _ in self.events[: at + 1]:
            if change >= 0:
                live[id(made)] = made
            else:
                live.pop(id(made), None)
        return Peak(most, sorted(live.values(), key=lambda s: -s.bytes), self.events[at][2] if self.events else "")

    @contextmanager
    def layers(self, model: Any) -> Iterator[None]:
        """Assign to the layers of a ``GPTModel`` what their forward passes make; what outlives one is an activation."""

        def enter(name: str) -> Any:
            return lambda *_: setattr(self, "layer", name)

        def leave(*_: Any) -> None:
            self.layer = ""
            self.keep("activations")

        named = {name: getattr(model, name, None) for name in ("embedding", "output_layer")}
        named |= {f"layer {layer.layer_number}": layer for layer in model.decoder.layers}
        named["final norm"] = model.decoder.final_layernorm
        with ExitStack() as hooks:
            for name, module in named.items():
                if module is not None:
                    hooks.enter_context(module.register_forward_pre_hook(enter(name)))
                    hooks.enter_context(module.register_forward_hook(leave))
            yield

    # ---- operations and traffic

    def _count_operations(self, func: Any, name: str, args: Any, kwargs: Any, out: Any) -> None:
        if attention.is_one(name):
            self.flops += attention.operations(name, args, kwargs, self.lengths)
        elif name == "_grouped_mm":  # each row with one expert's matrix
            self.flops += 2.0 * args[0].numel() * args[1].shape[-1]
        elif formula := flop_registry.get(getattr(torch.ops.aten, name.removesuffix("_"), None)):  # addmm_ as addmm
            self.flops += formula(*args, **kwargs, out_val=out)

    def _count_traffic(self, name: str, args: Any) -> None:
        group = next((g for g in map(_group, args) if g is not None), None)
        if group is None or group.size() == 1:
            return
        ranks = group.size()
        tensors = [x for x in tree_iter(args[0]) if isinstance(x, torch.Tensor)]
        elements, dtype = sum(x.numel() for x in tensors), tensors[0].dtype if tensors else torch.uint8
        ring = (ranks - 1) / ranks
        share = {"allreduce_": 2 * ring, "send": 1.0, "recv_": 0.0, "barrier": 0.0}.get(name, ring)
        if "reduce_scatter" in name:  # its first argument is the part that stays
            share = ranks - 1.0
        name_of = self.groups.get(group.group_name, "other")
        self.sent[name_of] += elements * dtype.itemsize * share
        self.transfers.append((name_of, elements, str(dtype).removeprefix("torch."), ranks, share))


def _coalesced(func: Any, args: Any) -> Any:
    """Run a collective of several tensors, which has no fake implementation, on one number of each rank."""
    ranks = dist.ProcessGroup.unbox(args[2]).size()
    with no_dispatch():
        whole, part = torch.empty(ranks), torch.empty(1)
        pair = ([whole], [part]) if "gather" in func.overloadpacket.__name__ else ([part], [whole])
        return func(*pair, *args[2:])


def _group(argument: Any) -> Any:
    if isinstance(argument, torch.ScriptObject):
        try:
            return dist.ProcessGroup.unbox(argument)
        except (RuntimeError, ValueError):
            return None
    return None


def _place() -> str:
    """``file:line`` of the frame nearest to the operation that is not torch's."""
    frame: Any = sys._getframe(1)
    while frame is not None and not (place := place_of(frame.f_code.co_filename, frame.f_lineno)):
        frame = frame.f_back
    return place if frame is not None else ""


def place_of(path: str, line: int) -> str:
    """``file:line`` with two folders above it; empty in torch and in the files of :data:`_NOT_THE_PLACE`."""
    named = "/torch/" not in path and not path.endswith(_NOT_THE_PLACE)
    return f"{'/'.join(path.rsplit('/', 3)[1:])}:{line}" if named else ""
