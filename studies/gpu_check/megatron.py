"""A training step on Megatron-core alone, through its own schedule, DDP and distributed optimizer, on one rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.transformer_config import TransformerConfig

from solopo_nemo.core import device
from solopo_nemo.core.model import build_model
from solopo_nemo.core.reference import CachedReference
from solopo_nemo.core.step import ForwardStep
from solopo_nemo.data.packing import Layout, pack
from solopo_nemo.objectives import build_objective

SHORT, RESPONSE, BASE = 1024, 128, 1e6
OBJECTIVES: dict[str, dict[str, Any]] = {"SoLo-DPO": {"alpha": 1.0}, "Long-DPO": {"align": "none", "prompt": "long"}}


@dataclass(frozen=True)
class Shape:
    """An architecture of the Qwen2.5 family, embeddings tied."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv: int
    vocabulary: int = 151936


SHAPES = {
    "tiny": Shape(2, 64, 128, 4, 2, 512),
    "0.5B": Shape(24, 896, 4864, 14, 2),
    "1.5B": Shape(28, 1536, 8960, 12, 2),
}


def sample(shape: Shape, number: int, short: int, long: int, response: int) -> dict[str, Any]:
    """A triplet of random token ids."""
    g = torch.Generator().manual_seed(number)
    sizes = {"prompt_short": short, "prompt_long": long, "chosen": response, "rejected": response}
    ids = {k: torch.randint(1, shape.vocabulary, (n,), generator=g).tolist() for k, n in sizes.items()}
    return {"id": str(number), **ids}


class Training:
    """A model with random weights, its optimizer and an objective.

    Args:
        shape: of the model.
        dtype: of the weights; bf16 has an fp32 copy in the optimizer.
        method: a key of :data:`OBJECTIVES`.
        layers: ``auto``, ``transformer_engine`` or ``torch``.
    """

    def __init__(self, shape: Shape, dtype: torch.dtype, method: str = "SoLo-DPO", layers: str = "auto") -> None:
        device.prepare_process()
        backend = "nccl" if device.cuda() else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        tensor_parallel.model_parallel_cuda_manual_seed(1, force_reset_rng=True)
        bf16 = dtype == torch.bfloat16
        config = TransformerConfig(
            num_layers=shape.layers, hidden_size=shape.hidden, ffn_hidden_size=shape.ffn,
            num_attention_heads=shape.heads, num_query_groups=shape.kv, normalization="RMSNorm",
            gated_linear_unit=True, activation_func=torch.nn.functional.silu, add_bias_linear=False, add_qkv_bias=True,
            hidden_dropout=0.0, attention_dropout=0.0, bf16=bf16, params_dtype=dtype,
            finalize_model_grads_func=finalize_model_grads,
        )  # fmt: skip
        self.shape, self.objective = shape, build_objective("dpo", **OBJECTIVES[method])
        self.core: Any = build_model(
            config, shape.vocabulary, 1 << 20, layers=layers, rotary_base=BASE, share_embeddings_and_output_weights=True
        )
        self.layers = config.transformer_impl
        ddp = DistributedDataParallelConfig(use_distributed_optimizer=True, grad_reduce_in_fp32=True)
        self.model = DistributedDataParallel(config, ddp, Float16Module(config, self.core) if bf16 else self.core)
        self.optimizer: Any = get_megatron_optimizer(
            OptimizerConfig(lr=1e-6, bf16=bf16, use_distributed_optimizer=True), [self.model]
        )
        device.fuse_adamw(self.optimizer)

    def backward(self, samples: list[dict[str, Any]], reference: float = -1.0) -> float:
        """Loss of a micro-batch; its gradients are then in Megatron's buffers."""
        names = self.objective.reference_sequences
        table = {row["id"]: dict.fromkeys(names, reference) for row in samples}
        self.model.zero_grad_buffer()
        (metrics,) = get_forward_backward_func()(
            forward_step_func=ForwardStep(self.objective, CachedReference(names, table)),
            data_iterator=iter([pack(samples, self.objective.sequences, Layout())]), model=[self.model],
            num_microbatches=1, seq_length=1, micro_batch_size=1,
        )  # fmt: skip
        return float(metrics["loss"][0])

    def step(self, samples: list[dict[str, Any]]) -> float:
        """One optimizer step; its loss."""
        loss = self.backward(samples)
        self.optimizer.step()
        return loss
