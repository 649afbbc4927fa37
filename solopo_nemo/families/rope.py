"""Rotary embeddings in ``config.json``: ``rope_theta`` and the scaling, as transformers 4 or 5 writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from solopo_nemo.runtime.errors import UserError, require

KEYS: dict[str, tuple[set[str], set[str]]] = {
    "linear": ({"factor"}, set()),
    "llama3": ({"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}, set()),
    "yarn": (
        {"factor"},
        {"original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale"}
        | {"mscale_all_dim", "truncate"},
    ),
}
"""For each scaling type, the required and the optional keys of transformers."""
WITHOUT_EFFECT = {"finetuned": True, "extrapolation_factor": 1.0, "attn_factor": 1.0}
"""Keys and values of other programs for YaRN, with which it computes what it computes without them."""
DEFAULT_THETA = 10000.0
LOCAL = "rope_local_base_freq"
"""Rotary base of the sliding-window layers, which a family may have."""
LAYER_TYPES = ("full_attention", "sliding_attention")
"""Entries of ``layer_types`` by whether the layer slides, and keys of ``rope_parameters`` where there are two bases."""
LARGEST = 2**31 - 1
RopeScaling = dict[str, Any]


def is_number(value: Any) -> TypeGuard[float]:
    """True if a value of a JSON or YAML file is a finite number below 1e30 in magnitude."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e30 < value < 1e30


def is_whole(value: Any, least: int, most: int) -> TypeGuard[int]:
    """True if a value is an integer from ``least`` to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def read_rope(
    config: Mapping[str, Any], window: int, where: str, defaults: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Read ``rope_theta`` and the scaling from a ``config.json``.

    transformers 4 writes ``rope_theta`` and ``rope_scaling``. transformers 5 writes both into ``rope_parameters``. A
    model with two bases has ``rope_local_base_freq`` too, or in transformers 5 a mapping for each layer type.

    Args:
        config: content of the file.
        window: ``max_position_embeddings`` of the file.
        where: name of the file in error messages.
        defaults: of the family's keys.

    Returns:
        ``rope_theta``; ``rope_scaling`` as :func:`normal_scaling` returns it; ``rope_local_base_freq`` in a family
        that has it.

    Raises:
        UserError: a value is not supported, or the two forms contradict each other.
    """
    defaults = defaults or {}
    found, nested = dict[str, Any](), config.get("rope_parameters")
    if LOCAL in defaults:
        local = {"rope_theta": config[LOCAL]} if LOCAL in config else {}
        if nested is not None:
            if not (isinstance(nested, Mapping) and {*nested} == {*LAYER_TYPES}):
                raise UserError(f"{where}: rope_parameters: must have one mapping for each of {', '.join(LAYER_TYPES)}")
            local["rope_parameters"] = nested[LAYER_TYPES[1]]
            config = {**config, "rope_parameters": nested[LAYER_TYPES[0]]}
        found[LOCAL], scaling = _read(local, window, f"{where}: {LAYER_TYPES[1]}", defaults[LOCAL])
        if scaling:
            raise UserError(
                f"{where}: rope_parameters: {LAYER_TYPES[1]} has {scaling}; only default is supported there"
            )
    theta, scaling = _read(config, window, where, defaults.get("rope_theta", DEFAULT_THETA))
    return {"rope_theta": theta, "rope_scaling": scaling, **found}


def _read(config: Mapping[str, Any], window: int, where: str, default: float) -> tuple[float, RopeScaling | None]:
    """Base and scaling of one kind of layer."""
    stated = config.get("rope_parameters")
    if stated is None:
        scaling = normal_scaling(config.get("rope_scaling"), window, f"{where}: rope_scaling")
        return _theta(config, where, default), scaling
    key = f"{where}: rope_parameters"
    if not isinstance(stated, Mapping):
        raise UserError(f"{key}: must be a mapping such as {{rope_type: default, rope_theta: 10000.0}}, not {stated!r}")
    parameters = dict(stated)
    for name, value in parameters.items():
        if isinstance(value, Mapping):
            raise UserError(f"{key}: {name} is a mapping: one for each layer type is not supported, only one for all")
    if (rotated := parameters.pop("partial_rotary_factor", 1.0)) != 1.0:
        raise UserError(f"{key}: partial_rotary_factor={rotated} is not supported, only 1.0")
    theta = _theta(parameters if "rope_theta" in parameters else config, key, default)
    if "rope_theta" in config and (other := _theta(config, where, default)) != theta:
        raise UserError(f"{key}: rope_theta={theta} contradicts rope_theta={other} beside it; remove the wrong one")
    parameters.pop("rope_theta", None)
    if not {"rope_type", "type"} & parameters.keys():
        parameters["rope_type"] = "default"
    scaling = normal_scaling(parameters, window, key)
    if "rope_scaling" in config:
        older = normal_scaling(config["rope_scaling"], window, f"{where}: rope_scaling")
        require(older == scaling, f"{key}: {scaling} contradicts rope_scaling={older}; remove the wrong one")
    return theta, scaling


def _theta(values: Mapping[str, Any], where: str, default: float) -> float:
    theta: float = values.get("rope_theta", default)
    require(is_number(theta) and theta > 1, f"{where}: rope_theta={theta!r} is not valid; it must be a number above 1")
    return theta


def normal_scaling(value: Any, window: int, where: str) -> RopeScaling | None:
    """Normalize a rope scaling: the type is under ``rope_type``, and YaRN states its original window.

    Args:
        value: content of ``rope_scaling``.
        window: ``max_position_embeddings`` of the same file.
        where: name of the mapping in error messages.

    Returns:
        The scaling, or ``None`` for the type ``default``.

    Raises:
        UserError: a type, a key or a value is not supported.
    """
    if value is None or value == {}:
        return None
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: must be a mapping such as {{rope_type: yarn, factor: 4.0}}, not {value!r}")
    scaling = {k: v for k, v in value.items() if v is not None and k != "type"}
    kind = scaling.setdefault("rope_type", value.get("type"))
    if value.get("type") not in (None, kind):
        raise UserError(f"{where}: type={value['type']!r} contradicts rope_type={kind!r}")
    if kind != "default" and (not isinstance(kind, str) or kind not in KEYS):
        kinds = ", ".join(("default", *KEYS))
        what = "names no rope_type" if kind is None else f"type {kind!r} is not supported"
        raise UserError(f"{where}: {what}; supported are {kinds}")
    if kind == "yarn":
        scaling = {k: v for k, v in scaling.items() if k not in WITHOUT_EFFECT or v != WITHOUT_EFFECT[k]}
    needed, optional = KEYS.get(kind, (set(), set()))
    missing, unknown = needed - scaling.keys(), scaling.keys() - needed - optional - {"rope_type"}
    if missing:
        raise UserError(f"{where}: type {kind!r} needs {', '.join(sorted(missing))}")
    if unknown:
        raise UserError(
            f"{where}: type {kind!r} has no {', '.join(sorted(unknown))}: remove it if the model was trained without it"
        )
    if kind == "default":
        return None
    for key in scaling.keys() - {"rope_type"}:
        require(_valid(key, scaling[key]), f"{where}: {key}={scaling[key]!r} is no valid value")
    if kind == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise UserError(f"{where}: high_freq_factor must be greater than low_freq_factor")
    if kind == "yarn":
        scaling.setdefault("original_max_position_embeddings", window)
    return scaling


def _valid(key: str, value: Any) -> bool:
    if key == "truncate":
        return isinstance(value, bool)
    if key == "original_max_position_embeddings":
        return is_whole(value, 1, LARGEST)
    return is_number(value) and (value >= 1 if key == "factor" else value > 0)
