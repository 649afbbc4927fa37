"""A LoRA adapter's folder as peft writes it: ``adapter_config.json`` and ``adapter_model.safetensors``."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from solopo_nemo.families.description import ModelDescription
from solopo_nemo.families.expert_weights import expert_paths
from solopo_nemo.families.family import MODULES, TARGETS
from solopo_nemo.families.hf import copy_template, read_config
from solopo_nemo.families.weights import expected_tensors, find_weights, tensor_headers
from solopo_nemo.runtime.errors import UserError, require
from solopo_nemo.runtime.json_files import read_json, write_json

SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_WITHOUT_EFFECT = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "megatron_core", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
    *("init_lora_weights", "layers_to_transform", "layers_pattern", "qalora_group_size"),
}
"""Settings that are read here, or say nothing that the tensors do not say."""
_KEEPS_BASE = (None, "gaussian", "eva", "orthogonal", "mica")
"""Ways in which peft begins an adapter, besides true and false, that leave the weights of the base model alone."""

Tensors = Mapping[tuple[int, str, str], torch.Tensor]
"""``A`` ``[rank, in]`` and ``B`` ``[out, rank]`` by layer, module and half; those of all experts are stacked."""


def _paths(model: ModelDescription, layer: int, module: str) -> list[str]:
    """Paths in the model of what has one name among the targets: a module, or that of each expert."""
    return [f"model.layers.{layer}.{path}" for path in expert_paths(model, layer, module) or [MODULES[module]]]


def by_path(model: ModelDescription, layer: int, module: str, half: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """The parts of one of :data:`Tensors`, each with the path of its module in the model."""
    return zip(_paths(model, layer, module), half if half.dim() == 3 else [half], strict=True)


def _name(path: str, half: str) -> str:
    """peft's name of a tensor."""
    return f"base_model.model.{path}.lora_{half}.weight"


@dataclass(frozen=True)
class AdapterFolder:
    """A checked folder.

    Attributes:
        folder: with the two files.
        rank: of every module.
        alpha: the product ``B A`` is scaled by ``alpha / rank``.
        targets: modules that have an adapter, in every layer.
        model: that they are of.
    """

    folder: Path
    rank: int
    alpha: float
    targets: tuple[str, ...]
    model: ModelDescription

    def tensor(self, layer: int, module: str, half: str) -> torch.Tensor:
        """A module's ``A`` or ``B``, or the experts', read from the file, as :data:`Tensors` has it."""
        with safe_open(self.folder / WEIGHTS, "pt") as opened:
            found = [opened.get_tensor(_name(path, half)) for path in _paths(self.model, layer, module)]
        return torch.stack(found) if expert_paths(self.model, layer, module) else found[0]


def read_adapter(folder: Path, model: ModelDescription) -> AdapterFolder:
    """Read and check a folder; of the tensors the file's header alone.

    Raises:
        UserError: no folder of an adapter, another kind of adapter than computed here, or of another model.
    """
    for name in (SETTINGS, WEIGHTS):
        require((folder / name).is_file(), f"no {folder / name}: give a folder that peft's save_pretrained wrote")
    settings = read_json(folder / SETTINGS)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if settings.get("peft_type") != "LORA" or not isinstance(rank, int) or not isinstance(alpha, int | float):
        raise UserError(f"{folder / SETTINGS}: no LoRA adapter: peft_type LORA, r and lora_alpha are needed")
    begun = settings.get("init_lora_weights", True)
    if not isinstance(begun, bool) and begun not in _KEEPS_BASE:
        raise UserError(
            f"{folder / SETTINGS}: init_lora_weights={begun} changed the base weights too: save it with peft's "
            "save_pretrained(folder, path_initial_model_for_weight_conversion=...), or merge it with peft"
        )
    odd = {k: v for k, v in settings.items() if k not in _WITHOUT_EFFECT and v and (k, v) != ("bias", "none")}
    if odd:
        key, value = next(iter(odd.items()))
        raise UserError(
            f"{folder / SETTINGS}: {key}={value} is not supported: train such an adapter with peft, merge it"
        )
    known = adapter_tensors(model, rank)
    held = tensor_headers(folder / WEIGHTS)
    for name, (got, _) in held.items():
        if name not in known:
            raise UserError(f"{folder / WEIGHTS}: {name} is no adapter of a linear layer of the model{_reason(name)}")
        if got != (shape := known[name][1]):
            raise UserError(f"{folder / WEIGHTS}: {name} has shape {got}, the model and r={rank} ask for {shape}")
    targets = tuple(target for target in TARGETS if target in {known[name][0] for name in held})
    lacking = [name for name, (target, _) in known.items() if target in targets and name not in held]
    if lacking or not targets:
        what = lacking[0] if lacking else "adapter of any module"
        raise UserError(f"{folder / WEIGHTS}: no {what}: every layer, and every expert, needs the same modules")
    return AdapterFolder(folder, rank, float(alpha), targets, model)


def adapter_tensors(model: ModelDescription, rank: int) -> dict[str, tuple[str, list[int]]]:
    """Module and shape of every tensor that an adapter of a model may have, by peft's name."""
    weights = expected_tensors(model, torch.float32)
    known: dict[str, tuple[str, list[int]]] = {}
    for layer in range(model.num_hidden_layers):
        for module in TARGETS:
            for path in _paths(model, layer, module):
                out, width = weights[f"{path}.weight"].shape
                known |= {_name(path, "A"): (module, [rank, width]), _name(path, "B"): (module, [out, rank])}
    return known


def _reason(name: str) -> str:
    return ", whose routers stay as they are: leave gate out of target_modules" if ".gate." in name else ""


def write_adapter(
    folder: Path, tensors: Tensors, model: ModelDescription, base: str, rank: int, alpha: float, dropout: float
) -> None:
    """Write a folder that peft loads.

    Args:
        folder: made if missing.
        tensors: of every layer.
        model: that they are of.
        base: folder or hub name of the model, for ``base_model_name_or_path``.
        rank, alpha, dropout: settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    named = {
        _name(path, half): part.contiguous()
        for (layer, module, half), tensor in tensors.items()
        for path, part in by_path(model, layer, module, tensor)
    }
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
        "target_modules": sorted({name.split(".")[-3] for name in named}),
    }
    write_json(folder / SETTINGS, settings)


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
    with safe_open(adapter / WEIGHTS, "pt") as halves:
        held = set(halves.keys())

        def merged(name: str, weight: torch.Tensor) -> torch.Tensor:
            a, b = (_name(name.removesuffix(".weight"), half) for half in "AB")
            if a not in held:
                return weight
            whole, scale = weight.float(), found.alpha / found.rank
            return whole.addmm_(halves.get_tensor(b).float(), halves.get_tensor(a).float(), alpha=scale).to(
                weight.dtype
            )

        for file in sorted(set(weights.files.values())):
            with safe_open(file, "pt") as opened:
                names = [name for name in opened.keys() if name in weights.files]  # noqa: SIM118
                tensors = {name: merged(name, opened.get_tensor(name)) for name in names}
            save_file(tensors, destination / file.name, metadata={"format": "pt"})
    index = "model.safetensors.index.json"
    if (model / index).is_file():
        shutil.copyfile(model / index, destination / index)
