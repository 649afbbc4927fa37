"""NeMo's model classes with SoLoPO, and their connectors from and to Hugging Face.

One importer and one exporter serve all families, registered with NeMo's connector mechanism. NeMo's own connectors
(2.7.3) are not used, for these reasons:

- They untie tied Qwen2 models.
- They lose YaRN, Llama 3's scaling except its factor, Mistral's vocabulary size and window (and add one token to its
  sliding window), and Qwen3's head size and stated window.
- They ignore biases that they do not know, and fail without a generation config.
- They load the tokenizer with ``trust_remote_code=True``, through one folder in ``/tmp`` for all users.
- They hold two to three copies of the weights.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from nemo.collections import llm
from nemo.lightning import io, teardown

from solopo_nemo.core import device
from solopo_nemo.core.layers.blockwise import gelu_tanh
from solopo_nemo.core.layers.extras import LayerExtras
from solopo_nemo.core.lora import adapters_of
from solopo_nemo.core.scoring import load_weights
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.families import hf
from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.family import Family
from solopo_nemo.families.weights import (
    LazyState,
    expected_tensors,
    find_weights,
    imported_dtype,
    to_megatron,
    write_weights,
)
from solopo_nemo.nemo_model.adapters import base_of, lora_of, merge_into_weights, run_of
from solopo_nemo.nemo_model.end_tokens import add_end_tokens
from solopo_nemo.nemo_model.mixin import SoLoPOMixin
from solopo_nemo.nemo_model.rope import RopeScaled
from solopo_nemo.runtime.isolated import Progress, unseen


@dataclass
class SoLoQwen2Config(RopeScaled, llm.Qwen2Config):
    """Qwen2 and Qwen2.5."""


@dataclass
class SoLoQwen3Config(RopeScaled, llm.Qwen3Config):
    """Qwen3."""


@dataclass
class SoLoLlamaConfig(RopeScaled, llm.LlamaConfig):
    """Llama 2, 3 and 3.x."""


@dataclass
class SoLoMistralConfig(RopeScaled, llm.MistralConfig7B):
    """Mistral."""


class SoLoQwen2Model(SoLoPOMixin, llm.Qwen2Model):
    """Qwen2 and Qwen2.5."""


class SoLoQwen3Model(SoLoPOMixin, llm.Qwen3Model):
    """Qwen3, with norms of queries and keys, and a head size that is not ``hidden_size / heads``."""


class SoLoLlamaModel(SoLoPOMixin, llm.LlamaModel):
    """Llama 2, 3 and 3.x."""


class SoLoMistralModel(SoLoPOMixin, llm.MistralModel):
    """Mistral."""


@dataclass
class SoLoGPTConfig(RopeScaled, LayerExtras, llm.GPTConfig):
    """The config of any other family. Its fields are set from the family's record and the model's description."""

    normalization: str = "RMSNorm"
    gated_linear_unit: bool = True
    add_bias_linear: bool = False
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    position_embedding_type: str = "rope"


class SoLoGPTModel(SoLoPOMixin, llm.GPTModel):
    """The model of any other family."""


MODELS: dict[str, tuple[Any, Any]] = {
    "qwen2": (SoLoQwen2Model, SoLoQwen2Config),
    "qwen3": (SoLoQwen3Model, SoLoQwen3Config),
    "llama": (SoLoLlamaModel, SoLoLlamaConfig),
    "mistral": (SoLoMistralModel, SoLoMistralConfig),
}
"""Model and config class of the families that NeMo has classes for, by the name of the family's record."""
ACTIVATIONS = {"silu": torch.nn.functional.silu, "gelu_pytorch_tanh": gelu_tanh}
"""Activation functions by their name in a family's record."""


def classes_of(family: str) -> tuple[Any, Any]:
    """The model class and the config class of a family."""
    return MODELS.get(family, (SoLoGPTModel, SoLoGPTConfig))


def family_settings(family: Family) -> dict[str, Any]:
    """The fields of :class:`SoLoGPTConfig` that a family's record determines."""
    return {
        "qk_layernorm": family.qk_norm,
        "add_qkv_bias": family.qkv_bias,
        "activation_func": ACTIVATIONS[family.activation],
        "layernorm_zero_centered_gamma": family.zero_centered,
        "post_norms": family.post_norms,
        "scaled_embedding": family.scaled_embedding,
    }


def megatron_config(model: ModelDescription, dtype: torch.dtype) -> Any:
    """The NeMo config of a model.

    Args:
        model: description of the model.
        dtype: dtype of the parameters.
    """
    sliding, family = model.attention_window, model.family
    settings: dict[str, Any] = {}
    if model.model_type not in MODELS:
        scalar, base = model.query_pre_attn_scalar, model.rope_local_base_freq
        settings = family_settings(family) | {"query_pre_attn_scalar": scalar, "rotary_base_local": base}
        if model.no_rope_layers:
            settings["no_rope_freq"] = [1 - on for on in model.no_rope_layers]
    return classes_of(model.model_type)[1](
        num_layers=model.num_hidden_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.intermediate_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_key_value_heads,
        kv_channels=model.head_dim,
        init_method_std=model.initializer_range,
        layernorm_epsilon=model.rms_norm_eps,
        rotary_base=model.rope_theta,
        rope_scaling=model.rope_scaling,
        seq_length=model.max_position_embeddings,
        vocab_size=model.vocab_size,
        share_embeddings_and_output_weights=model.tie_word_embeddings,
        # Megatron's window does not count the query's own token
        window_size=(sliding[0] - 1, 0) if sliding else None,
        window_attn_skip_freq=[int(layer) for layer in sliding[1]] if sliding else None,
        cp_comm_type="a2a",
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        **settings,
        **_expert_settings(model),
    )


def _expert_settings(model: ModelDescription) -> dict[str, Any]:
    experts = model.experts
    if experts is None:
        return {}
    return {
        "num_moe_experts": experts.count,
        "moe_ffn_hidden_size": experts.size,
        "moe_layer_freq": 1 if all(experts.layers) else [int(has) for has in experts.layers],
        "moe_router_topk": experts.chosen,
        "moe_router_pre_softmax": not experts.normalized,
        "moe_router_dtype": "fp32",
        "moe_router_load_balancing_type": "aux_loss",
        "moe_aux_loss_coeff": experts.aux_loss,
        "moe_permute_fusion": False,
    }


def nemo_model(model: ModelDescription, dtype: torch.dtype, **kwargs: Any) -> Any:
    """The NeMo model of a description; ``configure_model`` builds its Megatron model.

    Args:
        model: description of the model.
        dtype: dtype of the parameters.
        **kwargs: arguments of :class:`SoLoPOMixin`.
    """
    return classes_of(model.model_type)[0](megatron_config(model, dtype), **kwargs)


@contextmanager
def one_rank() -> Iterator[None]:
    """Inside the block Megatron's process groups exist, with this process as their only rank."""
    device.prepare_process()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(0, force_reset_rng=True)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def load_module(checkpoint: Path, description: ModelDescription, dtype: torch.dtype, merge: bool = True) -> Any:
    """The Megatron model of a NeMo checkpoint on one rank, in evaluation mode.

    Args:
        checkpoint: the checkpoint; for one of adapters the base weights are loaded too.
        description: description of the model.
        dtype: dtype of the parameters; adapters are fp32.
        merge: add the adapters to the weights.
    """
    run = run_of(checkpoint)
    lora = lora_of(run, description) if run else None
    model = nemo_model(description, dtype, lora=lora and replace(lora, initial=None))
    model.config.perform_initialization = False
    model.configure_model()
    if run:
        load_weights(model.module, base_of(checkpoint))
    for adapter in adapters_of(model.module):
        adapter.float()
    load_weights(model.module, checkpoint)
    if merge:
        merge_into_weights(model.module)
    return model.module.eval()


class HFImporter(io.ModelConnector[Any, Any]):
    """Converts a Hugging Face folder to a NeMo checkpoint with an ``hf`` folder (configuration, tokenizer, template).

    Memory: one copy of the fused tensors (the others stay mapped from their files) and the buffers of the writer.

    Attributes:
        rope_scaling: replaces the model's own.
        trust_remote_code: run Python code that the folder contains.
        progress: shows the progress of the conversion.
    """

    rope_scaling: Mapping[str, Any] | None = None
    trust_remote_code = False
    progress: Progress = staticmethod(unseen)

    @cached_property
    def description(self) -> ModelDescription:
        """The description of the model."""
        return hf.read_config(Path(self), rope_scaling=self.rope_scaling)

    def apply(self, output_path: Path) -> Path:
        """Writes the checkpoint.

        Raises:
            UserError: the folder cannot be converted; before any work.
        """
        from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer

        weights = find_weights(Path(self), self.description)
        tokenizer = load_tokenizer(Path(self), self.trust_remote_code)
        with tempfile.TemporaryDirectory() as assets:
            tokenizer.save_pretrained(assets)
            target = nemo_model(self.description, weights.dtype, tokenizer=AutoTokenizer(assets))
            target.config.init_model_with_meta_device = True
            trainer = self.nemo_setup(target)
            state = LazyState(weights, self.progress("reading weights", len(weights.files)))
            to_megatron(state, target, self.description.family)
            saved = self.progress("saving", 1)
            self.nemo_save(output_path, trainer)
            saved()
        teardown(trainer, target)
        changes = self.description.changes()
        hf.copy_template(Path(self), Path(output_path) / "hf", changes, code=self.trust_remote_code)
        return Path(output_path)


class HFExporter(io.ModelConnector[Any, Any]):
    """Converts a NeMo checkpoint with an ``hf`` folder to a Hugging Face folder, in the dtype of the imported weights.

    All files are those of the import, except the weights and the trained end tokens in ``eos_token_id``.
    Memory: the model and two shards.

    Attributes:
        max_shard_size: argument of transformers' ``save_pretrained``.
        trust_remote_code: run Python code that the ``hf`` folder contains.
        progress: shows the progress of the conversion.
    """

    max_shard_size = "5GB"
    trust_remote_code = False
    progress: Progress = staticmethod(unseen)

    @cached_property
    def description(self) -> ModelDescription:
        """The description of the model, from the ``hf`` folder."""
        return hf.read_config(Path(self) / "hf")

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights to write."""
        return imported_dtype(Path(self))

    def apply(self, output_path: Path) -> Path:
        """Writes the folder."""
        with one_rank():
            self.write(load_module(Path(self), self.description, self.dtype), Path(output_path))
        return Path(output_path)

    def write(self, module: Any, output_path: Path) -> int:
        """Writes the folder with the weights of a loaded model, and returns the number of parameters."""
        hf.copy_template(Path(self) / "hf", output_path, self.description.changes(), code=self.trust_remote_code)
        add_end_tokens(Path(self), output_path)
        expected = expected_tensors(self.description, self.dtype)
        wrote = self.progress("writing weights", len(expected))
        write_weights(module, expected, self.description.family, output_path, self.max_shard_size, wrote)
        return sum(tensor.numel() for tensor in expected.values())


for _model in (SoLoGPTModel, *(_model for _model, _ in MODELS.values())):
    io.model_importer(_model, "hf")(HFImporter)
    io.model_exporter(_model, "hf")(HFExporter)
