"""Validation of ``config.json``: the known keys and their allowed values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from solopo_nemo.families.family import FAMILIES, SUPPORTED, UNSUPPORTED, Family
from solopo_nemo.families.rope import LARGEST, LAYER_TYPES, is_number, is_whole
from solopo_nemo.runtime.errors import UserError

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Required keys."""
SUPPORTED_VALUES: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "use_mrope": False,
    "router_jitter_noise": 0.0,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}
"""Keys with a single supported value."""
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
READ = {
    *("model_type", "architectures", "rope_theta", "rope_scaling", "rope_parameters", "quantization_config"),
    *("max_position_embeddings", "num_key_value_heads", "head_dim", "initializer_range", "rms_norm_eps"),
    *("tie_word_embeddings", "dtype", "torch_dtype", "layer_types", *TOKEN_IDS, *SIZES),
}
PROVENANCE = """transformers_version _name_or_path _model_name_or_path name_or_path _commit_hash auto_map
transformers.js_config is_llama_config unsloth_version unsloth_fixed model_name source license"""
RUNNING = """use_cache pretraining_tp attn_implementation _attn_implementation _attn_implementation_autoset
_attn_implementation_internal experts_implementation _experts_implementation _flash_attn_2_enabled
gradient_checkpointing torchscript use_bfloat16 tf_legacy_loss output_attentions output_hidden_states return_dict
is_decoder tie_encoder_decoder chunk_size_feed_forward cross_attention_hidden_size pruned_heads tokenizer_class
prefix model_max_length tokenizer_model_max_length tokenizer_padding_side"""
OTHER_TASKS = """id2label label2id num_labels problem_type finetuning_task task_specific_params unk_token_id
sep_token_id decoder_start_token_id max_sequence_length"""
SAMPLING = """max_length min_length do_sample early_stopping num_beams num_beam_groups temperature diversity_penalty
top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
bad_words_ids num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens"""
WITHOUT_EFFECT = {*" ".join((PROVENANCE, RUNNING, OTHER_TASKS, SAMPLING)).split()}
"""Keys that occur in published files and have no effect on training."""
_ORIGINAL = "original_max_position_embeddings"
DTYPES = ("float32", "bfloat16", "float16")


class Reader:
    """Reads validated values from a ``config.json``. Every method raises ``UserError`` for an invalid value."""

    def __init__(self, config: Mapping[str, Any], family: Family, where: str) -> None:
        self._config, self.family, self.where = config, family, where

    def wrong(self, key: str, value: Any, what: str) -> UserError:
        """The error of an invalid value."""
        return UserError(f"{self.where}: {key}={value!r} is not valid; it must be {what}")

    def value(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the family's default."""
        return self._config.get(key, self.family.defaults.get(key, default))

    def check_keys(self) -> None:
        """Refuse missing, unknown and unsupported keys."""
        config, where, family = self._config, self.where, self.family
        if missing := [key for key in SIZES if key not in config]:
            raise UserError(f"{where}: no {', '.join(missing)}")
        named = config.get("architectures")
        if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
            raise self.wrong("architectures", named, "a list of names")
        if named and family.architecture not in named:
            raise UserError(
                f"{where}: architectures {named}: only {family.architecture}, the language model itself, is supported"
            )
        if config.get("quantization_config"):
            raise UserError(f"{where}: quantization_config: quantized weights cannot be trained; take the original")
        values = SUPPORTED_VALUES | {**family.only}
        for key, only in values.items():
            value = config.get(key, only)
            if isinstance(value, bool) != isinstance(only, bool) or value != only:
                raise UserError(f"{where}: {key}={value} is not supported, only {only}")
        known = READ | WITHOUT_EFFECT | values.keys() | family.defaults.keys()
        if family.sliding is None:  # keys that switch sliding windows off are correct
            off = (None, False)
            known |= {k for k in ("sliding_window", "use_sliding_window") if any(config.get(k) is o for o in off)}
            known |= {"sliding_window"} if config.get("use_sliding_window") is False else set()
        if config.get(_ORIGINAL) == config.get("max_position_embeddings"):  # Phi-4 as a Llama
            known |= {_ORIGINAL}
        for key in config:
            if key not in known:
                raise UserError(
                    f"{where}: {key!r} is unknown for {family.models} and could change what the model computes; "
                    "if it does not, remove it from the file"
                )

    def whole(self, key: str, most: int = LARGEST, nothing: int | None = None) -> int:
        """A positive integer up to ``most``. ``nothing`` replaces ``null`` if the family allows ``null``."""
        value = self.value(key)
        if value is None and nothing is not None and self._allows_null(key):
            return nothing
        if not is_whole(value, 1, most):
            raise self.wrong(key, value, f"a whole number from 1 to {most}")
        return value

    def _allows_null(self, key: str) -> bool:
        # for Qwen2, head_dim may be absent but not null: transformers cannot build that model
        return key != "head_dim" or key not in self._config or self.family.defaults.get(key, 0) is None

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value = self.value(key, default)
        if not is_number(value) or value <= 0:
            raise self.wrong(key, value, "a positive number")
        return value

    def optional(self, key: str) -> float | None:
        """A positive number of a family that has the key."""
        return self.number(key, 0.0) if key in self.family.defaults else None

    def truth(self, key: str) -> bool:
        """``true`` or ``false``."""
        value = self.value(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false")
        return value

    def dtype(self) -> str | None:
        """Dtype of the weights, from ``dtype`` or ``torch_dtype``."""
        stated = {key: self._config[key] for key in ("dtype", "torch_dtype") if self._config.get(key) is not None}
        for key, value in stated.items():
            if value not in DTYPES:
                raise self.wrong(key, value, f"one of {', '.join(DTYPES)}")
        if len({*stated.values()}) > 1:
            raise UserError(f"{self.where}: dtype={stated['dtype']} contradicts torch_dtype={stated['torch_dtype']}")
        return next(iter(stated.values()), None)

    def token_ids(self) -> dict[str, Any]:
        """The ids of the special tokens."""
        found = {key: self._config[key] for key in TOKEN_IDS if key in self._config}
        for key, value in found.items():
            check_token_ids(value, key, self.where)
        return found

    def sliding(self, layers: int) -> tuple[int | None, tuple[bool, ...]]:
        """The sliding window in tokens, and for each of ``layers`` layers whether it applies."""
        if self.family.sliding is None:
            return self._against_types(None, (False,) * layers)
        if self.family.sliding == "pattern":
            every, types = self.whole("sliding_window_pattern"), self._layer_types(layers)
            return self.whole("sliding_window"), types or tuple(bool((i + 1) % every) for i in range(layers))
        on = self.family.sliding == "all" or self.truth("use_sliding_window")
        size = None if self.value("sliding_window") is None else self.whole("sliding_window")
        size = size if on else None
        if self.family.sliding == "all":
            return self._against_types(size, (size is not None,) * layers)
        first = self.value("max_window_layers")
        if not is_whole(first, 0, LARGEST):
            raise self.wrong("max_window_layers", first, "a whole number")
        types = self._layer_types(layers)
        which = tuple(size is not None and layer >= first for layer in range(layers)) if types is None else types
        if any(which) and size is None:
            raise UserError(f"{self.where}: layer_types has sliding_attention, and sliding_window is off")
        return (size if any(which) else None), which

    def rope_layers(self, layers: int) -> tuple[int, ...] | None:
        """For each layer 1 if it has rotary embeddings, else 0; ``None`` for a family in which all have them."""
        if "no_rope_layers" not in self.family.defaults:
            return None
        stated, every = self.value("no_rope_layers"), self.whole("no_rope_layer_interval")
        if stated is None:
            return tuple(int((layer + 1) % every != 0) for layer in range(layers))
        if not isinstance(stated, list) or len(stated) != layers or any(not is_whole(on, 0, 1) for on in stated):
            raise self.wrong("no_rope_layers", stated, f"a list of 0 and 1, one for each of {layers} layers")
        return tuple(stated)

    def _against_types(self, size: int | None, which: tuple[bool, ...]) -> tuple[int | None, tuple[bool, ...]]:
        """Check ``layer_types`` against the layers of a family whose transformers code does not read that key."""
        types = self._layer_types(len(which))
        if types is not None and types != which:
            raise UserError(
                f"{self.where}: layer_types contradicts sliding_window={size}, and {self.family.models} models in "
                "transformers go by the latter"
            )
        return size, which

    def _layer_types(self, layers: int) -> tuple[bool, ...] | None:
        types = self._config.get("layer_types")
        if types is None:
            return None
        if not isinstance(types, list) or len(types) != layers or any(kind not in LAYER_TYPES for kind in types):
            raise self.wrong(
                "layer_types", types, f"a list of {' or '.join(LAYER_TYPES)}, one for each of {layers} layers"
            )
        return tuple(kind == LAYER_TYPES[True] for kind in types)


def refusal(config: Mapping[str, Any], where: str) -> UserError:
    """Why a model of no supported family is not read: the reason, or the settings that are unknown here."""
    kind = config.get("model_type")
    known = {*READ, *WITHOUT_EFFECT, *SUPPORTED_VALUES, *(k for family in FAMILIES.values() for k in family.defaults)}
    usual = [pair for family in FAMILIES.values() for pair in family.only.items()]
    changed = [k for k, v in config.items() if (k, v) not in usual and v not in (None, False, 0, [], {})]
    own = [str(key) for key in changed if key not in known]
    own += [f"{key}={config[key]}" for key, only in SUPPORTED_VALUES.items() if config.get(key, only) != only]
    why = "what its layers compute was not compared with the supported families"
    if own:
        why = f"settings that are unknown here: {', '.join(own[:8])}"
    if {"vision_config", "audio_config"} & config.keys():
        part = config.get("text_config")
        text = str(part.get("model_type", "")) if isinstance(part, Mapping) else ""
        why = "it reads images or sound too" + (f", and its text layers are {text!r}" if text else "")
        if text in FAMILIES:
            why += f", supported if they are saved alone as a {FAMILIES[text].architecture}"
    return UserError(f"{where}: model_type {kind!r} is not supported ({UNSUPPORTED.get(str(kind), why)}); {SUPPORTED}")


def check_token_ids(value: Any, key: str, where: str) -> None:
    """Check that a value is a token id, a list of token ids or ``null``.

    Raises:
        UserError: the value is something else.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(is_whole(i, -1, LARGEST) for i in ids):
        raise UserError(f"{where}: {key}={value!r} is not valid; it must be a token id, a list of token ids or null")
