"""A LoRA adapter's folder as peft writes it: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.family import MODULES, TARGETS
from solopo_nemo.families.hf import copy_template, read_config, read_json
from solopo_nemo.families.weights import expected_tensors, find_weights
from solopo_nemo.runtime.errors import UserError

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"base_model\.model\.model\.layers\.(\d+)\.([\w.]+)\.lora_([AB])\.weight")
_WITHOUT_EFFECT = {
    *(
        "peft_type",
        "task_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "init_lora_weights", "megatron_core"),
    *("layers_to_transform", "layers_pattern", "qalora_group_size"),  # the tensors say which modules there are
}

Tensors = Mapping[tuple[int, str, str], torch.Tensor]
"""``A`` ``[rank, in]`` and ``B`` ``[out, rank]`` by layer, module and half."""


def tensor_name(layer: int, module: str, half: str) -> str:
    """peft's name of a tensor."""
    return f"base_model.model.model.layers.{layer}.{MODULES[module]}.lora_{half}.weight"


@dataclass(frozen=True)
class AdapterFolder:
    """A checked folder.

    Attributes:
        folder: with the two files.
        rank: of every module.
        alpha: the product ``B A`` is scaled by ``alpha / rank``.
        targets: modules that have an adapter, in every layer.
    """

    folder: Path
    rank: int
    alpha: float
    targets: tuple[str, ...]

    def tensor(self, layer: int, module: str, half: str) -> torch.Tensor:
        """``A`` ``[rank, in]`` or ``B`` ``[out, rank]`` of a module, read from the file."""
        with safe_open(self.folder / WEIGHTS, "pt") as opened:
            found: torch.Tensor = opened.get_tensor(tensor_name(layer, module, half))
        return found


def read_adapter(folder: Path, model: ModelDescription) -> AdapterFolder:
    """Read and check a folder; of the tensors the file's header alone.

    Raises:
        UserError: no folder of an adapter, another kind of adapter than computed here, or of another model.
    """
    for name in (SETTINGS, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"no {folder / name}: give a folder that peft's save_pretrained wrote")
    settings = read_json(folder / SETTINGS)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if settings.get("peft_type") != "LORA" or not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise UserError(f"{folder / SETTINGS}: no LoRA adapter: peft_type LORA, r and lora_alpha are needed")
    odd = {k: v for k, v in settings.items() if k not in _WITHOUT_EFFECT and v and (k, v) != ("bias", "none")}
    if odd:
        key, value = next(iter(odd.items()))
        raise UserError(
            f"{folder / SETTINGS}: {key}={value} is not supported: train such an adapter with peft, merge it"
        )
    shapes = {name: tensor.shape for name, tensor in expected_tensors(model, torch.float32).items()}
    found: dict[str, set[int]] = {}
    try:
        with safe_open(folder / WEIGHTS, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # no mapping
                match = _NAME.fullmatch(name)
                weight = shapes.get(f"model.layers.{match[1]}.{match[2]}.weight") if match else None
                if match is None or weight is None:
                    raise UserError(f"{folder / WEIGHTS}: {name} is no adapter of a linear layer of the model")
                shape = [rank, weight[1]] if match[3] == "A" else [weight[0], rank]
                if (got := list(opened.get_slice(name).get_shape())) != shape:
                    raise UserError(
                        f"{folder / WEIGHTS}: {name} has shape {got}, the model and r={rank} ask for {shape}"
                    )
                found.setdefault(f"{match[2].split('.')[1]} {match[3]}", set()).add(int(match[1]))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS}: cannot be read as safetensors ({' '.join(str(error).split())})") from None
    targets = tuple(name for name in TARGETS if f"{name} A" in found or f"{name} B" in found)
    lacking = [
        f"{name} in layer {layer}"
        for name in targets
        for layer in range(model.num_hidden_layers)
        if any(layer not in found.get(f"{name} {half}", ()) for half in "AB")
    ]
    if lacking or not targets:
        what = lacking[0] if lacking else "any module"
        raise UserError(f"{folder / WEIGHTS}: no adapter of {what}: every layer needs the same modules")
    return AdapterFolder(folder, rank, float(alpha), targets)


def write_adapter(folder: Path, tensors: Tensors, base: str, rank: int, alpha: float, dropout: float) -> None:
    """Write a folder that peft loads.

    Args:
        folder: made if missing.
        tensors: of every layer.
        base: folder or hub name of the model, for ``base_model_name_or_path``.
        rank, alpha, dropout: settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {tensor_name(*key): tensor.contiguous() for key, tensor in tensors.items()}
    save_file(named, folder / WEIGHTS, metadata={"format": "pt"})
    settings: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": sorted({module for _, module, _ in tensors}),
    }
    (folder / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def merge_adapter(model: Path, adapter: Path, destination: Path) -> None:
    """Write a model with an adapter added to its weights: summed in fp32, in the type and files of the model.

    Memory: the largest file of the model.

    Args:
        model: Hugging Face folder.
        adapter: folder of :func:`read_adapter`.
        destination: folder, which exists.

    Raises:
        UserError: either is damaged, or they do not belong together.
    """
    description = read_config(model)
    weights, found = find_weights(model, description), read_adapter(adapter, description)
    copy_template(model, destination, {})
    for file in sorted(set(weights.files.values())):
        with safe_open(file, "pt") as opened:
            names = [name for name in opened.keys() if name in weights.files]  # noqa: SIM118
            tensors = {name: _merged(name, opened.get_tensor(name), found) for name in names}
        save_file(tensors, destination / file.name, metadata={"format": "pt"})
    index = "model.safetensors.index.json"
    if (model / index).is_file():
        shutil.copyfile(model / index, destination / index)


def _merged(name: str, weight: torch.Tensor, adapter: AdapterFolder) -> torch.Tensor:
    match = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(\w+)\.weight", name)
    if match is None or match[2] not in adapter.targets:
        return weight
    a, b = (adapter.tensor(int(match[1]), match[2], half).float() for half in "AB")
    return weight.float().addmm_(b, a, alpha=adapter.alpha / adapter.rank).to(weight.dtype)
