"""SoLo-DPO on Megatron-core alone: three steps of a tiny model, with neither NeMo nor Lightning.

torchrun --nproc-per-node 2 docs/examples/without_nemo.py --tensor 2
"""

import argparse
import os

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig

from solopo_nemo.core import device
from solopo_nemo.core.model import build_model
from solopo_nemo.core.reference import CachedReference
from solopo_nemo.core.scoring import score_batches
from solopo_nemo.core.step import ForwardStep, reduce_metrics
from solopo_nemo.data.packing import Layout, pack
from solopo_nemo.objectives import build_objective

STEPS, SAMPLES, MICRO_BATCH, VOCABULARY, LENGTH = 3, 8, 2, 256, 128


def triplets() -> list[dict]:
    """Tokenized triplets; here random ones."""
    g, lengths = torch.Generator().manual_seed(0), {"prompt_short": 10, "prompt_long": 60, "chosen": 6, "rejected": 4}
    tokens = lambda n: torch.randint(1, VOCABULARY, (n,), generator=g).tolist()  # noqa: E731
    return [{"id": str(i), **{field: tokens(n + i) for field, n in lengths.items()}} for i in range(SAMPLES)]


def train(tensor: int, context: int) -> list[float]:
    """Losses of the steps."""
    parallel_state.initialize_model_parallel(tensor, context_parallel_size=context)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    config = TransformerConfig(
        num_layers=2, hidden_size=64, ffn_hidden_size=128, num_attention_heads=4, num_query_groups=2,
        normalization="RMSNorm", gated_linear_unit=True, activation_func=torch.nn.functional.silu,
        add_bias_linear=False, add_qkv_bias=True, hidden_dropout=0.0, attention_dropout=0.0,
        tensor_model_parallel_size=tensor, context_parallel_size=context, cp_comm_type="p2p",
        finalize_model_grads_func=finalize_model_grads,
    )  # fmt: skip
    ddp = DistributedDataParallelConfig(use_distributed_optimizer=True)
    model = DistributedDataParallel(config, ddp, build_model(config, VOCABULARY, LENGTH))
    optimizer = get_megatron_optimizer(OptimizerConfig(lr=1e-3, use_distributed_optimizer=True), [model])

    objective, layout = build_objective("dpo", alpha=3.0), Layout(context, parallel_state.get_context_parallel_rank())
    groups = [triplets()[i : i + MICRO_BATCH] for i in range(0, SAMPLES, MICRO_BATCH)]
    groups = groups[parallel_state.get_data_parallel_rank() :: parallel_state.get_data_parallel_world_size()]
    # the model is its own reference policy before it is trained
    names = objective.reference_sequences
    scores = torch.cat(score_batches(model, [pack(group, names, layout) for group in groups])).view(-1, len(names))
    ids = [sample["id"] for group in groups for sample in group]
    table = {i: dict(zip(names, row, strict=True)) for i, row in zip(ids, scores.tolist(), strict=True)}
    step, losses = ForwardStep(objective, CachedReference(names, table)), []
    for _ in range(STEPS):
        model.zero_grad_buffer()
        outputs = get_forward_backward_func()(
            forward_step_func=step, data_iterator=iter([pack(group, objective.sequences, layout) for group in groups]),
            model=[model], num_microbatches=len(groups), seq_length=1, micro_batch_size=1,
        )  # fmt: skip
        optimizer.step()
        losses.append(reduce_metrics(outputs)["loss"])
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--context", type=int, default=1)
    given = parser.parse_args()
    if int(os.environ.get("WORLD_SIZE", 0)) not in (given.tensor * given.context * n for n in (1, 2, 4)):
        parser.error("start it with torchrun --nproc-per-node N; N is tensor * context, or 2 or 4 times as many")
    device.prepare_process()
    dist.init_process_group("nccl" if device.cuda() else "gloo")
    found = train(**vars(given))
    if dist.get_rank() == 0:
        print(*found)
    dist.destroy_process_group()
