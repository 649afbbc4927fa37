"""Conversion of weights between safetensors files of Hugging Face and Megatron, tensor by tensor.

All supported families have the same tensor names, so one table maps the names in both directions. NeMo's functions
merge and split the fused tensors.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.expert_weights import NORM, ExpertLayers, expert_shapes, expert_tensor, in_layer
from solopo_nemo.families.family import Family
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.json_files import read_json, write_json

MODEL = {
    "model.embed_tokens.weight": "embedding.word_embeddings.weight",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
}
"""Hugging Face name -> Megatron name."""
LAYER = {
    "self_attn.q_norm.weight": "self_attention.q_layernorm.weight",
    "self_attn.k_norm.weight": "self_attention.k_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
    "mlp.down_proj.weight": "mlp.linear_fc2.weight",
}
"""Hugging Face name below ``model.layers.N`` -> Megatron name below ``decoder.layers.N``; besides ``Family.norms``."""
FUSED = {
    "self_attention.linear_qkv.weight": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
    "self_attention.linear_qkv.bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
    "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
"""Megatron name of a fused tensor in a layer -> the Hugging Face names of its parts."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def expected_tensors(model: ModelDescription, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a model's files by name, on the meta device, in the order of transformers."""
    hidden, ffn, head = model.hidden_size, model.intermediate_size, model.head_dim
    attention = {"q_proj": model.query_size, "k_proj": model.kv_size, "v_proj": model.kv_size}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, hidden)}
    layer: dict[str, tuple[int, ...]] = {}
    for name, rows in attention.items():
        layer[f"self_attn.{name}.weight"] = (rows, hidden)
        if model.family.qkv_bias:
            layer[f"self_attn.{name}.bias"] = (rows,)
    layer["self_attn.o_proj.weight"] = (hidden, model.query_size)
    if model.family.qk_norm:
        layer |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    mlp = {"mlp.gate_proj.weight": (ffn, hidden), "mlp.up_proj.weight": (ffn, hidden)}
    mlp |= {"mlp.down_proj.weight": (hidden, ffn)}
    norms, experts = dict.fromkeys(model.family.norms, (hidden,)), expert_shapes(model)
    for number in range(model.num_hidden_layers):
        own = experts if model.experts and model.experts.layers[number] else mlp
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in (layer | own | norms).items()}
    shapes["model.norm.weight"] = (hidden,)
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}


@dataclass(frozen=True)
class WeightFiles:
    """Checked safetensors files of a model.

    Attributes:
        files: tensor name to file.
        dtype: dtype of all tensors.
        parameters: number of parameters; tied ones count once.
    """

    files: Mapping[str, Path]
    dtype: torch.dtype
    parameters: int

    @property
    def bytes(self) -> int:
        """Size of all tensors in bytes: ``parameters * dtype.itemsize``."""
        return self.parameters * self.dtype.itemsize


def find_weights(folder: Path, model: ModelDescription) -> WeightFiles:
    """Find and check the weights of a folder. Only the file headers are read.

    Args:
        folder: Hugging Face folder.
        model: description of the folder's model.

    Raises:
        UserError: a file is missing or damaged; a tensor is missing, unknown or of the wrong shape; dtypes differ.
    """
    if (folder / "adapter_config.json").exists():  # transformers would load the adapter, too
        raise UserError(
            f"{folder}: holds a LoRA adapter (adapter_config.json), which is not read here: move it to a folder of its "
            "own, and train on from it with peft=lora model.adapter=FOLDER, or merge it with solopo merge-adapter"
        )
    expected = expected_tensors(model, torch.float32)
    files: dict[str, Path] = {}
    dtypes: Counter[str] = Counter()
    for path, listed in _listed(folder).items():
        held = tensor_headers(path)
        if lacking := sorted(listed - held.keys()):
            raise UserError(f"{path}: lacks {lacking[0]}, which model.safetensors.index.json puts there")
        for name in listed or held:
            if name in expected:
                (shape, dtype), wanted = held[name], list(expected[name].shape)
                require(shape == wanted, f"{path}: {name} has shape {shape}, config.json asks for {wanted}")
                dtypes[dtype] += 1
            files[name] = path
    missing = sorted(expected.keys() - files.keys())
    if missing:
        raise UserError(f"{folder}: the files hold no {missing[0]}{_more(missing)}; is config.json of another model?")
    # transformers ignores these tensors too
    ignored = {name for name in files if name.endswith("rotary_emb.inv_freq")} | (
        {"lm_head.weight"} if model.tie_word_embeddings else set()
    )
    unknown = sorted(files.keys() - expected.keys() - ignored)
    if unknown:
        raise UserError(f"{folder}: the model of config.json has no {unknown[0]}{_more(unknown)}")
    if len(dtypes) > 1 or next(iter(dtypes)) not in DTYPES:
        counts = ", ".join(f"{name} ({count} tensors)" for name, count in dtypes.most_common())
        raise UserError(f"{folder}: weights of type {counts}; they must all be one of {', '.join(DTYPES)}")
    return WeightFiles(
        {name: files[name] for name in expected},
        DTYPES[next(iter(dtypes))],
        sum(tensor.numel() for tensor in expected.values()),
    )


def tensor_headers(file: Path) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of each tensor of a safetensors file, from its header.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
            return {name: (list(one.get_shape()), one.get_dtype()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{file}: cannot be read as safetensors ({reason}): copy it again (a clone needs git lfs pull)"
        ) from None


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more tensors" if len(names) > 1 else ""


def _listed(folder: Path) -> dict[Path, set[str]]:
    """Weight files and the tensors that the index assigns to each; an empty set means all tensors of the file."""
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if not index.is_file():
        if single.is_file():
            return {single: set()}
        raise UserError(
            f"{folder}: no model.safetensors; other weight files are not read, "
            "transformers' save_pretrained(folder) writes safetensors"
        )
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        listed: dict[Path, set[str]] = {}
        for name, file in placed.items():
            if Path(file).name != file:
                raise ValueError(f"{file!r} is no plain file name")
            listed.setdefault(folder / file, set()).add(name)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{index}: damaged ({type(error).__name__}: {error})") from None
    others = [path for path in listed if path != single]
    if single.is_file() and others:
        if any(path.is_file() for path in others):
            raise UserError(
                f"{folder}: holds model.safetensors, and {others[0].name}, which model.safetensors.index.json names: "
                "remove the one that is not the model's"
            )
        return {single: set()}  # the index is stale; transformers ignores it too
    absent = sorted(str(path) for path in listed if not path.is_file())
    if absent:
        raise UserError(f"{absent[0]}: missing, though model.safetensors.index.json names it")
    return listed


def imported_dtype(checkpoint: Path) -> torch.dtype:
    """The dtype in which a NeMo checkpoint was imported, parsed from its ``context/io.json``.

    NeMo's own loader would import the classes that the context names. Classes of older checkpoints have moved since.

    Raises:
        UserError: the file is damaged or contains no ``params_dtype``.
    """
    file = checkpoint / "context" / "io.json"
    found = None
    with suppress(KeyError, TypeError, ValueError, AttributeError):  # a damaged file
        for described in read_json(file)["objects"].values():
            for _, value in described["items"]:
                if isinstance(value, dict) and "<root>.model.config.params_dtype" in value.get("paths", ()):
                    found = getattr(torch, value["name"], None)
    if isinstance(found, torch.dtype):
        return found
    raise UserError(f"{file}: damaged, it holds no params_dtype of the model")


class LazyState(Mapping[str, torch.Tensor]):
    """A mapping that reads each tensor from its file on access, for NeMo's ``io.apply_transforms``.

    Memory: the files are memory-mapped. A tensor that Megatron uses unchanged occupies page cache only.

    Args:
        weights: the files.
        read: called after each tensor, for a progress bar.
    """

    def __init__(self, weights: WeightFiles, read: Callable[[], None]) -> None:
        self._files, self._read = weights.files, read

    def state_dict(self) -> LazyState:
        """The mapping itself; NeMo calls this method on a source model."""
        return self

    def __getitem__(self, name: str) -> torch.Tensor:
        with safe_open(self._files[name], "pt") as opened:
            tensor: torch.Tensor = opened.get_tensor(name)
        self._read()
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def to_megatron(source: LazyState, target: Any, family: Family) -> None:
    """Load the weights of a Hugging Face folder into a NeMo model that was built on the meta device.

    NeMo raises an error for a parameter that stays on the meta device, so no parameter keeps its initial value.

    Args:
        source: tensors by Hugging Face name.
        target: NeMo model.
        family: of the model.
    """
    from nemo.lightning import io
    from nemo.lightning.io.state import TransformFns

    held = set(source)
    in_layers = {in_layer(name)[1] for name in held}
    experts = any(".experts." in name for name in in_layers)
    merges = {"weight": TransformFns.merge_qkv, "bias": TransformFns.merge_qkv_bias}
    mapping = {hf: megatron for hf, megatron in MODEL.items() if hf in held}
    mapping |= {
        f"model.layers.*.{hf}": f"decoder.layers.*.{megatron}"
        for hf, megatron in (LAYER | {**family.norms}).items()
        if hf in in_layers and not (experts and hf == NORM)
    }
    transforms: list[Any] = [
        io.state_transform(
            source_key=tuple(f"model.layers.*.{hf}" for hf in parts),
            target_key=f"decoder.layers.*.{megatron}",
            fn=merges[megatron.rsplit(".", 1)[1]] if len(parts) == 3 else TransformFns.merge_fc1,
        )
        for megatron, parts in FUSED.items()
        if parts[0] in in_layers
    ]
    transforms += [ExpertLayers(family.norms[NORM])] if experts else []
    io.apply_transforms(source, target, mapping=mapping, transforms=transforms)


def hf_tensors(module: Any, names: Iterable[str], family: Family) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a Megatron model of one rank with their Hugging Face names, in the order of ``names``."""
    state = _HFState(module, family)
    return ((name, state[name].detach()) for name in names)


class _HFState:
    def __init__(self, module: Any, family: Family) -> None:
        from nemo.lightning.io.state import TransformCTX

        self._state = {k: v for k, v in module.state_dict().items() if not k.endswith("_extra_state")}
        self._context = TransformCTX(source=module, source_state=self._state, target=None, target_state={})
        self._parts: dict[str, torch.Tensor] = {}
        self._layer = LAYER | {**family.norms}
        self._fused = {hf: megatron for megatron, parts in FUSED.items() for hf in parts}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in MODEL:
            return self._state[MODEL[name]]
        layer, own = in_layer(name)
        at = f"decoder.layers.{layer}"
        if (of_experts := expert_tensor(self._state, at, own)) is not None:
            return of_experts
        if own in self._layer:
            return self._state[f"{at}.{self._layer[own]}"]
        if name not in self._parts:  # the parts of a fused tensor are requested one after the other
            fused = self._fused[own]
            split = self._split(fused)(self._state[f"{at}.{fused}"])
            self._parts |= {f"model.layers.{layer}.{hf}": x for hf, x in zip(FUSED[fused], split, strict=True)}
        return self._parts.pop(name)

    def _split(self, fused: str) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
        from nemo.lightning.io.state import TransformFns

        if fused.endswith("linear_fc1.weight"):
            return TransformFns.split_fc1
        function = TransformFns.split_qkv_bias if fused.endswith("bias") else TransformFns.split_qkv
        return lambda tensor: function(self._context, tensor)


def write_weights(
    module: Any,
    expected: Mapping[str, torch.Tensor],
    family: Family,
    folder: Path,
    max_shard_size: str,
    wrote: Callable[[], None],
) -> None:
    """Write a Megatron model as safetensors, with the shards and file names of transformers' ``save_pretrained``.

    Memory besides the model: one shard of about ``max_shard_size``.

    Args:
        module: Megatron model of one rank.
        expected: tensors of :func:`expected_tensors` in the dtype to write.
        family: of the model.
        folder: output folder.
        max_shard_size: as in ``save_pretrained``, such as ``5GB``.
        wrote: called after each tensor, for a progress bar.
    """
    plan = split_torch_state_dict_into_shards(
        dict(expected), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in plan.filename_to_tensors.items():
        shard = {}
        for name, tensor in hf_tensors(module, names, family):
            shard[name] = tensor.contiguous()
            wrote()
        save_file(shard, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        metadata = {"total_parameters": sum(tensor.numel() for tensor in expected.values()), **plan.metadata}
        index = {"metadata": metadata, "weight_map": plan.tensor_to_filename}
        write_json(folder / "model.safetensors.index.json", index, sort_keys=True)
