"""What a model's ``config.json`` says: this project's own reading, the only one that its values come from.

transformers 4 and 5 write the file differently, and each misreads some of what the other writes without a word:
transformers 4 reads a ``rope_parameters`` of transformers 5 as ``rope_theta`` 10,000 without scaling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from solopo_nemo.families.family import FAMILIES, SUPPORTED, Family
from solopo_nemo.families.rope import RopeScaling, is_number, normal_scaling, read_rope
from solopo_nemo.runtime.errors import UserError

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Keys that every file has to state."""
SUPPORTED_VALUES: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "partial_rotary_factor": 1.0,
    "rope_interleaved": False,
    "use_mrope": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
}
"""Keys of which one value is supported."""
READ = {
    *("model_type", "architectures", "rope_theta", "rope_scaling", "rope_parameters", "quantization_config"),
    *("max_position_embeddings", "num_key_value_heads", "head_dim", "initializer_range", "rms_norm_eps"),
    *("tie_word_embeddings", "dtype", "torch_dtype", "bos_token_id", "eos_token_id", "pad_token_id", "layer_types"),
    *SIZES,
}
WITHOUT_EFFECT = {
    # where the file comes from, and for which programs
    *("transformers_version", "_name_or_path", "name_or_path", "_commit_hash", "auto_map", "transformers.js_config"),
    *("is_llama_config", "unsloth_version", "unsloth_fixed", "model_name", "source", "license", "_unsloth_version"),
    # of running, not of the function
    *("use_cache", "pretraining_tp", "attn_implementation", "_attn_implementation", "_attn_implementation_autoset"),
    *("_attn_implementation_internal", "experts_implementation", "_experts_implementation"),
    *("_flash_attn_2_enabled", "gradient_checkpointing", "torchscript", "use_bfloat16", "tf_legacy_loss"),
    *("output_attentions", "output_hidden_states", "return_dict", "is_decoder", "tie_encoder_decoder"),
    *("chunk_size_feed_forward", "cross_attention_hidden_size", "pruned_heads", "tokenizer_class", "prefix"),
    # of other tasks
    *("id2label", "label2id", "num_labels", "problem_type", "finetuning_task", "task_specific_params"),
    *("unk_token_id", "sep_token_id", "decoder_start_token_id", "max_sequence_length"),
    # of sampling, in files of before generation_config.json
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "temperature"),
    *("diversity_penalty", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
    *("output_scores", "return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id"),
    *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens", "begin_suppress_tokens"),
}
"""Keys that real files have and that do not change what training computes."""
DTYPES = ("float32", "bfloat16", "float16")
LARGEST = 2**31 - 1


@dataclass(frozen=True)
class ModelDescription:
    """A dense decoder with RMSNorm, RoPE, grouped-query attention and SwiGLU. The names are Hugging Face's.

    Attributes:
        model_type: its family.
        vocab_size: rows of the embedding and of the head, tokens.
        head_dim: width of one attention head.
        max_position_embeddings: positions that the file states; see :attr:`window`.
        rope_scaling: mapping with ``rope_type``, or ``None``.
        sliding_window: tokens that a query of a sliding layer sees, its own included; ``None`` without such layers.
        sliding_layers: which layers those are.
        dtype: of the weights, as the file has it.
        token_ids: ``bos_token_id``, ``eos_token_id`` and ``pad_token_id``, as far as the file has them.
        source: content of the file.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    initializer_range: float
    rms_norm_eps: float
    tie_word_embeddings: bool
    rope_theta: float
    rope_scaling: RopeScaling | None
    sliding_window: int | None
    sliding_layers: tuple[bool, ...]
    dtype: str | None
    token_ids: Mapping[str, Any] = field(repr=False)
    source: Mapping[str, Any] = field(repr=False, compare=False)

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        where: str = "the model's configuration",
        *,
        rope_scaling: Mapping[str, Any] | None = None,
        rope_key: str = "rope_scaling",
    ) -> ModelDescription:
        """Read the content of a ``config.json``, of transformers 4 or 5.

        Args:
            config: the content.
            where: how messages name it.
            rope_scaling: replaces the model's own. For YaRN and Llama 3 ``max_position_embeddings`` then becomes the
                extended window, as transformers and inference servers expect.
            rope_key: how messages name ``rope_scaling``.

        Raises:
            UserError: with the key that is missing, wrong, unknown or not supported.
        """
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise UserError(f"{where}: model_type {kind!r} is not supported; {SUPPORTED}")
        read = _Reader(config, FAMILIES[kind], where)
        read.check_keys()
        heads = read.whole("num_attention_heads")
        groups = read.whole("num_key_value_heads", nothing=heads)
        if heads % groups:
            raise UserError(f"{where}: num_key_value_heads={groups} does not divide num_attention_heads={heads}")
        hidden, stated = read.whole("hidden_size"), read.whole("max_position_embeddings")
        head_dim = read.whole("head_dim", nothing=max(hidden // heads, 1))
        if head_dim % 2:
            raise UserError(f"{where}: head_dim={head_dim} is odd: rotary embeddings need pairs")
        theta, scaling = read_rope(config, stated, where)
        if rope_scaling is not None:
            scaling = normal_scaling(rope_scaling, stated, rope_key)
            if scaling and scaling["rope_type"] != "linear":
                stated = max(stated, int(scaling["factor"] * scaling["original_max_position_embeddings"]))
        layers = read.whole("num_hidden_layers", most=10_000)
        sliding_window, sliding_layers = read.sliding(layers)
        return cls(
            model_type=kind,
            vocab_size=read.whole("vocab_size"),
            hidden_size=hidden,
            intermediate_size=read.whole("intermediate_size"),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=groups,
            head_dim=head_dim,
            max_position_embeddings=stated,
            initializer_range=read.number("initializer_range", 0.02),
            rms_norm_eps=read.number("rms_norm_eps", 1e-6),
            tie_word_embeddings=read.truth("tie_word_embeddings"),
            rope_theta=theta,
            rope_scaling=scaling,
            sliding_window=sliding_window,
            sliding_layers=sliding_layers,
            dtype=read.dtype(),
            token_ids=read.token_ids(),
            source=config,
        )

    @property
    def family(self) -> Family:
        """The record of its family."""
        return FAMILIES[self.model_type]

    @property
    def qkv_bias(self) -> bool:
        """Whether the query, key and value projections have a bias."""
        return self.family.qkv_bias

    @property
    def qk_norm(self) -> bool:
        """Whether queries and keys are normalized by head."""
        return self.family.qk_norm

    @property
    def query_size(self) -> int:
        """Width of the queries, all heads: ``heads * head_dim``."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the keys, all heads; the values have the same."""
        return self.num_key_value_heads * self.head_dim

    @property
    def window(self) -> int:
        """Longest sequence in tokens that the model is configured for, its rope scaling counted in.

        YaRN reaches its factor times the original window and linear scaling its factor times
        ``max_position_embeddings``, whatever else the file says; Llama 3 files state the extended window themselves.
        """
        scaling, stated = self.rope_scaling, self.max_position_embeddings
        if scaling is None or scaling["rope_type"] == "llama3":
            return stated
        return int(scaling["factor"] * scaling.get("original_max_position_embeddings", stated))

    @property
    def attention_window(self) -> tuple[int, list[bool]] | None:
        """Sliding-window attention: tokens that a query sees (its own included), and which layers have it.

        ``None`` where no layer has it, or it covers the whole context.
        """
        if self.sliding_window is None or self.sliding_window >= self.window:
            return None
        return self.sliding_window, list(self.sliding_layers)

    def changes(self) -> dict[str, Any]:
        """Keys to replace in ``config.json`` so that transformers 4 and 5 both read this description from it.

        A file in the spelling of transformers 4 needs none: transformers 5 reads it the same way. One of transformers 5
        gets the older spelling beside its own. ``dtype`` alone counts as older: 4.56 writes it, and a version
        before reads the type from the weights.
        """
        source, found = self.source, {}
        plain = ModelDescription.from_hf(source)
        for key in ("rope_scaling", "max_position_embeddings"):
            if getattr(plain, key) != getattr(self, key):
                found[key] = getattr(self, key)
        if source.get("rope_parameters") is not None:
            newer = {"rope_type": "default"} | (self.rope_scaling or {}) | {"rope_theta": self.rope_theta}
            found |= {"rope_theta": self.rope_theta, "rope_scaling": self.rope_scaling, "rope_parameters": newer}
            found |= {"torch_dtype": self.dtype} if self.dtype else {}
        return {key: value for key, value in found.items() if key not in source or source[key] != value}

    def transformers_config(self, code: Any = None) -> Any:
        """A transformers configuration with these values, for the version that is installed.

        Args:
            code: ``auto_map`` of the file, where its code may run.
        """
        from transformers import AutoConfig

        names = (*SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range")
        values = {name: getattr(self, name) for name in (*names, "rms_norm_eps", "tie_word_embeddings", "dtype")}
        values |= {"rope_theta": self.rope_theta, "rope_scaling": self.rope_scaling and dict(self.rope_scaling)}
        values |= {"architectures": [self.family.architecture], "sliding_window": self.sliding_window}
        if self.family.sliding == "layers":
            kinds = ("full_attention", "sliding_attention")
            values["layer_types"] = [kinds[sliding] for sliding in self.sliding_layers]
            values["use_sliding_window"] = self.sliding_window is not None
        values |= {key: value for key, value in self.token_ids.items() if key != "pad_token_id"}
        return AutoConfig.for_model(self.model_type, **values, **({"auto_map": code} if code else {}))


class _Reader:
    """Checked values of a ``config.json``."""

    def __init__(self, config: Mapping[str, Any], family: Family, where: str) -> None:
        self._config, self._family, self._where = config, family, where

    def _wrong(self, key: str, value: Any, what: str) -> UserError:
        return UserError(f"{self._where}: {key}={value!r} is not valid; it must be {what}")

    def _value(self, key: str, default: Any = None) -> Any:
        return self._config.get(key, self._family.defaults.get(key, default))

    def check_keys(self) -> None:
        """Refuse what is unknown or not supported."""
        config, where, family = self._config, self._where, self._family
        if missing := [key for key in SIZES if key not in config]:
            raise UserError(f"{where}: no {', '.join(missing)}")
        named = config.get("architectures")
        if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
            raise self._wrong("architectures", named, "a list of names")
        if named and family.architecture not in named:
            raise UserError(
                f"{where}: architectures {named}: only {family.architecture}, the language model itself, is supported"
            )
        if config.get("quantization_config"):
            raise UserError(f"{where}: quantization_config: quantized weights cannot be trained; take the original")
        for key, only in SUPPORTED_VALUES.items():
            value = config.get(key, only)
            if isinstance(value, bool) != isinstance(only, bool) or value != only:
                raise UserError(f"{where}: {key}={value} is not supported, only {only}")
        known = READ | WITHOUT_EFFECT | SUPPORTED_VALUES.keys() | family.defaults.keys()
        for key, value in config.items():
            if key not in known and not (family.sliding is None and key == "sliding_window" and value is None):
                raise UserError(
                    f"{where}: {key!r} is unknown for {family.models} and could change what the model computes; "
                    "if it does not, remove it from the file"
                )

    def whole(self, key: str, most: int = LARGEST, nothing: int | None = None) -> int:
        """A positive integer; ``nothing`` is the value of ``null``, where the family allows that."""
        value = self._value(key)
        if value is None and nothing is not None and self._allows_null(key):
            return nothing
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise self._wrong(key, value, f"a whole number from 1 to {most}")
        return value

    def _allows_null(self, key: str) -> bool:
        # Qwen2's head_dim may be absent, but transformers cannot build a Qwen model with null
        return key != "head_dim" or key not in self._config or self._family.defaults.get(key, 0) is None

    def number(self, key: str, default: float) -> float:
        """A positive number."""
        value: float = self._value(key, default)
        if not is_number(value) or value <= 0:
            raise self._wrong(key, value, "a positive number")
        return value

    def truth(self, key: str) -> bool:
        """``true`` or ``false``."""
        value = self._value(key, False)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def dtype(self) -> str | None:
        """Type of the weights under either name."""
        stated = {key: self._config[key] for key in ("dtype", "torch_dtype") if self._config.get(key) is not None}
        for key, value in stated.items():
            if value not in DTYPES:
                raise self._wrong(key, value, f"one of {', '.join(DTYPES)}")
        if len({*stated.values()}) > 1:
            raise UserError(f"{self._where}: dtype={stated['dtype']} contradicts torch_dtype={stated['torch_dtype']}")
        return next(iter(stated.values()), None)

    def token_ids(self) -> dict[str, Any]:
        """The special tokens' ids."""
        keys = ("bos_token_id", "eos_token_id", "pad_token_id")
        found = {key: self._config[key] for key in keys if key in self._config}
        for key, value in found.items():
            check_token_ids(value, key, self._where)
        return found

    def sliding(self, layers: int) -> tuple[int | None, tuple[bool, ...]]:
        """The window of sliding layers, and which they are."""
        if self._family.sliding is None:
            return self._against_types(None, (False,) * layers)
        on = self._family.sliding == "all" or self.truth("use_sliding_window")
        size = self._value("sliding_window")
        if size is not None:
            size = self.whole("sliding_window")
        size = size if on else None
        if self._family.sliding == "all":
            return self._against_types(size, (size is not None,) * layers)
        first = self._value("max_window_layers")
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise self._wrong("max_window_layers", first, "a whole number")
        types = self._layer_types(layers)
        which = tuple(size is not None and layer >= first for layer in range(layers)) if types is None else types
        if any(which) and size is None:
            raise UserError(f"{self._where}: layer_types has sliding_attention, and sliding_window is off")
        return (size if any(which) else None), which

    def _against_types(self, size: int | None, which: tuple[bool, ...]) -> tuple[int | None, tuple[bool, ...]]:
        """The rule of a family that does not read ``layer_types``, which must not say otherwise."""
        types = self._layer_types(len(which))
        if types is not None and types != which:
            raise UserError(
                f"{self._where}: layer_types contradicts sliding_window={size}, and {self._family.models} models in "
                "transformers go by the latter"
            )
        return size, which

    def _layer_types(self, layers: int) -> tuple[bool, ...] | None:
        types = self._config.get("layer_types")
        if types is None:
            return None
        kinds = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) != layers or any(kind not in kinds for kind in types):
            raise self._wrong("layer_types", types, f"a list of {' or '.join(kinds)}, one for each of {layers} layers")
        return tuple(kind == "sliding_attention" for kind in types)


def check_token_ids(value: Any, key: str, where: str) -> None:
    """Check an id, a list of ids or ``null``.

    Raises:
        UserError: it is something else.
    """
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(isinstance(i, bool) or not isinstance(i, int) or not -1 <= i <= LARGEST for i in ids):
        raise UserError(f"{where}: {key}={value!r} is not valid; it must be a token id, a list of token ids or null")
