"""All patches of torch and Megatron-core; line numbers are those of Megatron-core 0.15.3.

``nemo_model.compat`` has the patches of NeMo. Importing this module changes nothing. :func:`install` replaces
Megatron's hard-coded CUDA calls by their CPU counterparts, so that its schedules, DDP, optimizer and checkpoints run
over gloo; with CUDA present it does nothing. :func:`install_optimizer` corrects Megatron's distributed optimizer over
torch's AdamW. Each patch names the lines that it replaces.
"""

from __future__ import annotations

import ctypes
import logging
import os
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from solopo_nemo.runtime import device

logger = logging.getLogger("solopo_nemo.rank")

_CPU = torch.device("cpu")
_M_MMAP_THRESHOLD = -3  # malloc.h
_BY_POSITION = frozenset((torch.Tensor.cuda, torch.Tensor.type, torch.Tensor.to))
"""Functions that name a device without a keyword."""


def _is_cuda(device: Any) -> bool:
    return str(device).startswith("cuda") if isinstance(device, (str, torch.device)) else False


class _CudaMeansCpu(TorchFunctionMode):
    """Replaces ``cuda`` by ``cpu`` in the device arguments of all torch functions.

    It covers ``device="cuda"`` (schedules.py:573, optimizer.py:469-481, clip_grads.py:90-206,
    exchange_utils.py:101-113), ``.cuda()`` (optimizer.py:371, language_module.py:233, two_stage.py:217)
    and the type names compared in optimizer.py:667-695, distrib_optimizer.py:357-431 and
    clip_grads.py:167 of Megatron-core; and ``pin_memory=True`` and ``.to("cuda")`` in
    megatron_strategy.py:797-888 and data_sampler.py:188-212 of NeMo.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not kwargs and func not in _BY_POSITION:  # nearly all of the 12,000 calls of a small model's step
            return func(*args)
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.type and len(args) == 1 and not kwargs:
            return func(*args).replace("torch.", "torch.cuda.", 1)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if func is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            args = (args[0], _CPU, *args[2:])
        return func(*args, **kwargs)


class _Nothing:
    """Replaces ``torch.cuda`` streams and events. All its methods do nothing: CPU operations run in order."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: _Nothing()

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_: Any) -> None:
        pass


_mode: _CudaMeansCpu | None = None


def install() -> None:
    """Makes Megatron-core and NeMo run on the CPU. With CUDA present, or at a second call, it does nothing.

    Call it before a model is built. For the rest of the process it replaces functions of ``torch.cuda``, replaces
    ``cuda`` by ``cpu`` in every torch call and switches ``torch.compile`` off.
    """
    global _mode
    if torch.cuda.is_available() or _mode is not None:
        return
    logger.info("no CUDA: torch.cuda answers for the CPU and torch.compile is off in this process")
    # jit_fuser (megatron/core/jit.py) is torch.compile: it needs a compiler at run time, and it fails if one function
    # has two names in torch.cuda. The stance covers modules that are imported already. The variable covers later
    # imports: torch.compile then returns the function itself, which saves 2 s of NeMo's import.
    torch.compiler.set_stance("force_eager")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    from megatron.core.tensor_parallel import random as megatron_random

    cuda: Any = torch.cuda
    # param_and_grad_buffer.py:702, p2p_communication.py:190-321, megatron_parallel.py:348
    cuda.current_device = lambda: _CPU
    # timers.py:149, p2p_communication.py:242, filesystem_async.py:230, fully_parallel.py:272; optimizer.py:358
    cuda.synchronize = cuda.empty_cache = cuda.set_device = lambda *_, **__: None
    # param_and_grad_buffer.py:370-463, distributed_data_parallel.py:251, megatron_parallel.py:617
    cuda.Stream = cuda.Event = cuda.stream = cuda.current_stream = cuda.default_stream = _Nothing
    # random.py:196-199, 370: Megatron's RNG tracker then forks and restores the CPU generator
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = cuda.random.get_rng_state = lambda *_, **__: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    # random.py:76: writes to torch.cuda.default_generators
    megatron_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)

    _patch_buffers()
    _patch_dispatcher()
    _return_freed_memory()
    _mode = _CudaMeansCpu()
    _mode.__enter__()  # for the life of the process


def _return_freed_memory() -> None:
    """Makes glibc return tensors of 2 MiB and more to the system when they are freed.

    By default glibc raises this threshold to up to 32 MiB and keeps smaller blocks in its heap. The activations of a
    long sequence fragment that heap, which costs a third of the peak memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc
        mallopt(_M_MMAP_THRESHOLD, 2 << 20)


def _patch_buffers() -> None:
    """Reduces gradients and gathers weights in place, as NCCL does. Gloo would copy whole buffers."""
    from megatron.core.distributed import param_and_grad_buffer as buffers

    reduce_scatter, all_gather = buffers.dist_reduce_scatter_func, buffers.dist_all_gather_func

    def reduce_in_place(shard: torch.Tensor, whole: torch.Tensor, op: Any, group: Any, async_op: bool) -> Any:
        if device.cuda():  # a dry run for a GPU
            return reduce_scatter(shard, whole, op=op, group=group, async_op=async_op)
        # param_and_grad_buffer.py:395; the shard is a view of the whole, and the other parts are not read
        if group.size() > 1:
            options = torch.distributed.AllreduceOptions()
            options.reduceOp = op
            group.allreduce([whole], options).wait()
        return None

    def gather_in_place(whole: torch.Tensor, shard: torch.Tensor, group: Any, async_op: bool) -> Any:
        if device.cuda():
            return all_gather(whole, shard, group=group, async_op=async_op)
        for rank, part in enumerate(whole.chunk(group.size())):  # param_and_grad_buffer.py:248, likewise
            options = torch.distributed.BroadcastOptions()
            options.rootRank = rank
            group.broadcast([part], options).wait()
        return None

    buffers.dist_reduce_scatter_func = reduce_in_place
    buffers.dist_all_gather_func = gather_in_place


def _patch_dispatcher() -> None:
    """Converts the sizes of Megatron's token dispatcher to numbers on the CPU, as it does with those on a GPU."""
    from megatron.core.transformer.moe import token_dispatcher

    # moe_utils.py:1093 returns a CPU tensor unchanged, and gloo accepts no tensor as the sizes of an exchange
    token_dispatcher.maybe_move_tensor_to_cpu = lambda sizes, as_numpy=False, record_stream=False: (
        sizes.numpy() if as_numpy and torch.is_tensor(sizes) else sizes
    )


def scale(_chunk: int, _overflow: torch.Tensor, tensors: list[list[torch.Tensor]], factor: float) -> None:
    """Writes ``factor`` times each tensor of a list to another one, in place or in another dtype, without a copy."""
    for source, target in zip(*tensors, strict=True):
        torch.mul(source, factor, out=target)


def install_optimizer() -> None:
    """Corrects Megatron's optimizer over torch's AdamW: it can be loaded, and clipping copies no gradient.

    With apex or Transformer Engine, or at a second call, it does nothing.
    """
    from megatron.core.optimizer import clip_grads
    from megatron.core.optimizer.distrib_optimizer import HAVE_APEX_OR_TE, DistributedOptimizer

    if HAVE_APEX_OR_TE or DistributedOptimizer.load_state_dict.__module__ == __name__:
        return

    clip_grads.multi_tensor_scale_impl = scale  # megatron/core/utils.py:1034 makes a scaled copy first

    def set_states(self: Any, model_param: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        # distrib_optimizer.py:924-928 reads AdamW's ``step`` for each parameter from the checkpoint, which has it in
        # the param groups, and copies into a leaf that requires grad.
        group, order = self.model_param_group_index_map[model_param]
        main_param = self.optimizer.param_groups[group]["params"][order]
        with torch.no_grad():
            for key, destination in {"param": main_param, **self.optimizer.state[main_param]}.items():
                if key in tensors and key != "step":
                    destination.copy_(tensors[key])

    load = DistributedOptimizer.load_state_dict

    def load_state_dict(self: Any, state_dict: Any) -> None:
        load(self, state_dict)
        # distrib_optimizer.py:815-821 gives all parameters the same ``step`` tensor. AdamW would increment it once for
        # each parameter, and the resumed run would silently differ.
        for parameter, state in self.optimizer.state.items():
            if "step" in state:  # on the parameter's device, as the fused AdamW requires
                state["step"] = state["step"].to(parameter.device, copy=True)

    DistributedOptimizer._set_main_param_and_optimizer_states = set_states
    DistributedOptimizer.load_state_dict = load_state_dict
