"""The weights of a Hugging Face folder as safetensors, read and written tensor by tensor, and their names in Megatron.

The four families share their names and shapes, so one table serves all, in both directions. Merging and splitting
of fused tensors is NeMo's.
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
from solopo_nemo.families.hf import read_json
from solopo_nemo.runtime.errors import UserError

MODEL = {
    "model.embed_tokens.weight": "embedding.word_embeddings.weight",
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
}
"""Hugging Face name -> Megatron name."""
LAYER = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "self_attn.q_norm.weight": "self_attention.q_layernorm.weight",
    "self_attn.k_norm.weight": "self_attention.k_layernorm.weight",
    "self_attn.o_proj.weight": "self_attention.linear_proj.weight",
    "post_attention_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
    "mlp.down_proj.weight": "mlp.linear_fc2.weight",
}
"""The same below ``model.layers.N`` and ``decoder.layers.N``."""
FUSED = {
    "self_attention.linear_qkv.weight": tuple(f"self_attn.{x}_proj.weight" for x in "qkv"),
    "self_attention.linear_qkv.bias": tuple(f"self_attn.{x}_proj.bias" for x in "qkv"),
    "mlp.linear_fc1.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
}
"""Megatron name below a layer -> the Hugging Face names that it joins."""

DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def expected_tensors(model: ModelDescription, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a model's files, on the meta device, in the order in which transformers saves them."""
    hidden, ffn, head = model.hidden_size, model.intermediate_size, model.head_dim
    attention = {"q_proj": model.query_size, "k_proj": model.kv_size, "v_proj": model.kv_size}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (model.vocab_size, hidden)}
    layer: dict[str, tuple[int, ...]] = {}
    for name, rows in attention.items():
        layer[f"self_attn.{name}.weight"] = (rows, hidden)
        if model.qkv_bias:
            layer[f"self_attn.{name}.bias"] = (rows,)
    layer["self_attn.o_proj.weight"] = (hidden, model.query_size)
    if model.qk_norm:
        layer |= {"self_attn.q_norm.weight": (head,), "self_attn.k_norm.weight": (head,)}
    layer |= {"mlp.gate_proj.weight": (ffn, hidden), "mlp.up_proj.weight": (ffn, hidden)}
    layer |= {"mlp.down_proj.weight": (hidden, ffn)}
    layer |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    for number in range(model.num_hidden_layers):
        shapes |= {f"model.layers.{number}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not model.tie_word_embeddings:
        shapes["lm_head.weight"] = (model.vocab_size, hidden)
    return {name: torch.empty(shape, dtype=dtype, device="meta") for name, shape in shapes.items()}


@dataclass(frozen=True)
class WeightFiles:
    """Checked safetensors files of a model.

    Attributes:
        files: file of each tensor.
        dtype: of all tensors.
        parameters: their number, tied ones counted once.
    """

    files: Mapping[str, Path]
    dtype: torch.dtype
    parameters: int

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return self.parameters * self.dtype.itemsize


def find_weights(folder: Path, model: ModelDescription) -> WeightFiles:
    """Find and check the weights of a folder by the headers of its files; no tensor is read.

    Args:
        folder: Hugging Face folder.
        model: what the folder says about its model.

    Raises:
        UserError: files missing or damaged, tensors missing, left over, of a wrong shape, or of several types.
    """
    expected = expected_tensors(model, torch.float32)
    files: dict[str, Path] = {}
    dtypes: Counter[str] = Counter()
    for path, listed in _listed(folder).items():
        try:
            with safe_open(path, "pt") as opened:
                held = set(opened.keys())
                lacking = sorted(listed - held)
                if lacking:
                    raise UserError(f"{path}: lacks {lacking[0]}, which model.safetensors.index.json puts there")
                for name in listed or held:
                    if name in expected:
                        described = opened.get_slice(name)
                        shape, wanted = list(described.get_shape()), list(expected[name].shape)
                        if shape != wanted:
                            raise UserError(f"{path}: {name} has shape {shape}, config.json asks for {wanted}")
                        dtypes[described.get_dtype()] += 1
                    files[name] = path
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: cannot be read as safetensors ({' '.join(str(error).split())})") from None
    missing = sorted(expected.keys() - files.keys())
    if missing:
        raise UserError(f"{folder}: the files hold no {missing[0]}{_more(missing)}; is config.json of another model?")
    # what transformers leaves aside too
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


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more tensors" if len(names) > 1 else ""


def _listed(folder: Path) -> dict[Path, set[str]]:
    """Weight files and the tensors that the index puts into each (none named: all that are there)."""
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
        return {single: set()}  # a stale index, which transformers does not read either
    absent = sorted(str(path) for path in listed if not path.is_file())
    if absent:
        raise UserError(f"{absent[0]}: missing, though model.safetensors.index.json names it")
    return listed


def imported_dtype(checkpoint: Path) -> torch.dtype:
    """The type that a NeMo checkpoint's model was imported in, read from the text of NeMo's context.

    NeMo would import the classes that the context names, and those of an older checkpoint have moved since.

    Raises:
        UserError: the context does not say.
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
    """Tensors read from their files when asked for, for NeMo's ``io.apply_transforms``.

    The files are mapped, not copied: a tensor that Megatron keeps as it is costs page cache only.
    """

    def __init__(self, weights: WeightFiles, read: Callable[[], None]) -> None:
        self._files, self._read = weights.files, read

    def state_dict(self) -> LazyState:
        """What NeMo asks a model for."""
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


def to_megatron(source: LazyState, target: Any) -> None:
    """Fill a NeMo model, built on the meta device, with the weights of a Hugging Face folder.

    NeMo fails where a parameter stays on the meta device: nothing can be left at its initial value.
    """
    from nemo.lightning import io
    from nemo.lightning.io.state import TransformFns

    held = set(source)
    merges = {"weight": TransformFns.merge_qkv, "bias": TransformFns.merge_qkv_bias}
    mapping = {hf: megatron for hf, megatron in MODEL.items() if hf in held}
    mapping |= {
        f"model.layers.*.{hf}": f"decoder.layers.*.{megatron}"
        for hf, megatron in LAYER.items()
        if f"model.layers.0.{hf}" in held
    }
    transforms = [
        io.state_transform(
            source_key=tuple(f"model.layers.*.{hf}" for hf in parts),
            target_key=f"decoder.layers.*.{megatron}",
            fn=merges[megatron.rsplit(".", 1)[1]] if len(parts) == 3 else TransformFns.merge_fc1,
        )
        for megatron, parts in FUSED.items()
        if f"model.layers.0.{parts[0]}" in held
    ]
    io.apply_transforms(source, target, mapping=mapping, transforms=transforms)


def hf_tensors(module: Any, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a Megatron model of one rank by their Hugging Face names, in the order asked for."""
    state = _HFState(module)
    for name in names:
        yield name, state[name].detach()


class _HFState:
    def __init__(self, module: Any) -> None:
        from nemo.lightning.io.state import TransformCTX

        self._state = {k: v for k, v in module.state_dict().items() if not k.endswith("_extra_state")}
        self._context = TransformCTX(source=module, source_state=self._state, target=None, target_state={})
        self._parts: dict[str, torch.Tensor] = {}
        self._fused = {hf: megatron for megatron, parts in FUSED.items() for hf in parts}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in MODEL:
            return self._state[MODEL[name]]
        layer, own = name.removeprefix("model.layers.").split(".", 1)
        if own in LAYER:
            return self._state[f"decoder.layers.{layer}.{LAYER[own]}"]
        if name not in self._parts:  # the parts of one fused tensor follow each other
            fused = self._fused[own]
            split = self._split(fused)(self._state[f"decoder.layers.{layer}.{fused}"])
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
    folder: Path,
    max_shard_size: str,
    wrote: Callable[[], None],
) -> None:
    """Write a Megatron model as safetensors, cut and named as transformers' ``save_pretrained`` does.

    One shard at a time is in memory beside the model.

    Args:
        module: Megatron model of one rank.
        expected: see :func:`expected_tensors`, of the dtype to write.
        folder: where.
        max_shard_size: as in ``save_pretrained``: ``5GB``.
        wrote: called for each tensor.
    """
    plan = split_torch_state_dict_into_shards(
        dict(expected), filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in plan.filename_to_tensors.items():
        shard = {}
        for name, tensor in hf_tensors(module, names):
            shard[name] = tensor.contiguous()
            wrote()
        save_file(shard, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        total = sum(tensor.numel() for tensor in expected.values())
        index = {"metadata": {"total_parameters": total, **plan.metadata}, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
