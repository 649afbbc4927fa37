"""The description of a model, read from its ``config.json``. All of the project reads model settings from it.

transformers 4 and 5 write different keys, and each silently misreads some keys of the other. For example,
transformers 4 ignores ``rope_parameters`` of transformers 5 and uses ``rope_theta`` 10,000 without scaling.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from solopo_nemo.families.experts import Experts, read_experts
from solopo_nemo.families.family import FAMILIES, Family
from solopo_nemo.families.reading import SIZES, Reader, refusal
from solopo_nemo.families.rope import LAYER_TYPES, LOCAL, RopeScaling, normal_scaling, read_rope
from solopo_nemo.runtime.errors import UserError, require


@dataclass(frozen=True)
class ModelDescription:
    """A decoder with RMSNorm, RoPE, grouped-query attention and gated MLPs. Names are those of Hugging Face.

    Attributes:
        model_type: key of the family in :data:`~solopo_nemo.families.family.FAMILIES`.
        vocab_size: rows of the embedding and of the output layer.
        head_dim: width of one attention head.
        max_position_embeddings: value in the file; see :attr:`window` for the usable length.
        rope_scaling: mapping with ``rope_type``, or ``None``.
        sliding_window: tokens that a query of a sliding-window layer attends to, its own included; ``None`` if no layer
            has a sliding window.
        sliding_layers: for each layer, True if it has a sliding window.
        experts: the mixture-of-experts layers, or ``None``.
        dtype: name of the weights' dtype in the file, or ``None``.
        token_ids: the keys ``bos_token_id``, ``eos_token_id`` and ``pad_token_id`` that the file contains.
        source: content of the file.
        rope_local_base_freq: rotary base of the sliding-window layers, without scaling; ``None``: they have that of
            all layers.
        no_rope_layers: for each layer 1 if it has rotary embeddings, else 0; ``None``: all have them.
        query_pre_attn_scalar: scores are divided by its square root; ``None``: by that of ``head_dim``.
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
    experts: Experts | None
    dtype: str | None
    token_ids: Mapping[str, Any] = field(repr=False)
    source: Mapping[str, Any] = field(repr=False, compare=False)
    rope_local_base_freq: float | None = None
    query_pre_attn_scalar: float | None = None
    no_rope_layers: tuple[int, ...] | None = None

    @classmethod
    def from_hf(
        cls,
        config: Mapping[str, Any],
        where: str = "the model's configuration",
        *,
        rope_scaling: Mapping[str, Any] | None = None,
        rope_key: str = "rope_scaling",
    ) -> ModelDescription:
        """Read the content of a ``config.json`` of transformers 4 or 5.

        Args:
            config: content of the file.
            where: name of the file in error messages.
            rope_scaling: replaces the model's scaling. For YaRN and Llama 3, ``max_position_embeddings`` then becomes
                the extended window, as transformers and inference servers expect.
            rope_key: name of ``rope_scaling`` in error messages.

        Raises:
            UserError: a key is missing, invalid, unknown or not supported.
        """
        kind = config.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            raise refusal(config, where)
        read = Reader(config, FAMILIES[kind], where)
        read.check_keys()
        heads = read.whole("num_attention_heads")
        groups = read.whole("num_key_value_heads", nothing=heads)
        if heads % groups:
            raise UserError(f"{where}: num_key_value_heads={groups} does not divide num_attention_heads={heads}")
        hidden, stated = read.whole("hidden_size"), read.whole("max_position_embeddings")
        head_dim = read.whole("head_dim", nothing=max(hidden // heads, 1))
        require(head_dim % 2 == 0, f"{where}: head_dim={head_dim} is odd: rotary embeddings need pairs")
        rope, family = read_rope(config, stated, where, read.family.defaults), read.family
        if rope_scaling is not None:
            own, scaling = rope["rope_scaling"], normal_scaling(rope_scaling, stated, rope_key)
            rope["rope_scaling"] = scaling
            if scaling and scaling["rope_type"] != "linear":
                stated = max(stated, int(scaling["factor"] * scaling["original_max_position_embeddings"]))
            elif family.states_window:
                linear = [s["factor"] if s and s["rope_type"] == "linear" else 1.0 for s in (scaling, own)]
                stated = int(stated * linear[0] / linear[1])
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
            **rope,
            sliding_window=sliding_window,
            sliding_layers=sliding_layers,
            experts=read_experts(read, layers),
            dtype=read.dtype(),
            token_ids=read.token_ids(),
            source=config,
            query_pre_attn_scalar=read.optional("query_pre_attn_scalar"),
            no_rope_layers=read.rope_layers(layers),
        )

    @property
    def family(self) -> Family:
        """The record of the model's family."""
        return FAMILIES[self.model_type]

    @property
    def query_size(self) -> int:
        """Width of the query projection: ``num_attention_heads * head_dim``."""
        return self.num_attention_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of the key projection and of the value projection: ``num_key_value_heads * head_dim``."""
        return self.num_key_value_heads * self.head_dim

    @property
    def window(self) -> int:
        """Maximum sequence length in tokens, rope scaling included.

        - YaRN: ``factor * original_max_position_embeddings``.
        - Linear: ``factor * max_position_embeddings``, or ``max_position_embeddings`` in a family that states it so.
        - Llama 3 and no scaling: ``max_position_embeddings``. Llama 3 files state the extended window there.
        """
        scaling, stated = self.rope_scaling, self.max_position_embeddings
        if scaling is None or scaling["rope_type"] == "llama3":
            return stated
        if scaling["rope_type"] == "linear" and self.family.states_window:
            return stated
        return int(scaling["factor"] * scaling.get("original_max_position_embeddings", stated))

    @property
    def attention_window(self) -> tuple[int, list[bool]] | None:
        """Sliding window in tokens (the query's own included), and for each layer whether it applies.

        ``None`` if no layer has a sliding window, or if the window covers the whole context and the rotary bases do not
        differ.
        """
        if self.sliding_window is None or (self.sliding_window >= self.window and self.rope_local_base_freq is None):
            return None
        return self.sliding_window, list(self.sliding_layers)

    def computation(self) -> str:
        """What the model computes, as one text: the same for every spelling of the same values in ``config.json``."""
        without = ("initializer_range", "dtype", "token_ids", "source")
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in without}
        # a later field that a model does not have leaves its text, and the names of caches, as they were
        values = {name: value for name, value in values.items() if name not in _LATER or value is not None}
        if self.experts is not None:
            values["experts"] = {k: v for k, v in asdict(self.experts).items() if k != "aux_loss"}
        return json.dumps(_as_floats(values), sort_keys=True)

    def changes(self) -> dict[str, Any]:
        """Keys to replace in ``config.json`` so that transformers 4 and 5 both read this description from it.

        A file of transformers 4 needs no change, because transformers 5 reads its keys. A file of transformers 5 gets
        the older keys in addition to its own. ``dtype`` without ``rope_parameters`` counts as transformers 4: version
        4.56 writes it, and earlier versions take the dtype from the weights.
        """
        source, found = self.source, {}
        plain = ModelDescription.from_hf(source)
        for key in ("rope_scaling", "max_position_embeddings"):
            if getattr(plain, key) != getattr(self, key):
                found[key] = getattr(self, key)
        if source.get("rope_scaling") == {}:  # transformers 4 fails
            found["rope_scaling"] = None
        if source.get("rope_parameters") is not None:
            newer: dict[str, Any] = {"rope_type": "default"} | (self.rope_scaling or {})
            newer |= {"rope_theta": self.rope_theta}
            if (local := self.rope_local_base_freq) is not None:
                newer = dict(zip(LAYER_TYPES, (newer, {"rope_type": "default", "rope_theta": local}), strict=True))
                found[LOCAL] = local
            found |= {"rope_theta": self.rope_theta, "rope_scaling": self.rope_scaling, "rope_parameters": newer}
            found |= {"torch_dtype": self.dtype} if self.dtype else {}
        return {key: value for key, value in found.items() if key not in source or source[key] != value}

    def transformers_config(self, code: Any = None) -> Any:
        """A configuration object of the installed transformers version with these values.

        Args:
            code: ``auto_map`` of the file, if its code may run.
        """
        from transformers import AutoConfig

        names = (*SIZES, "num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range")
        values = {name: getattr(self, name) for name in (*names, "rms_norm_eps", "tie_word_embeddings", "dtype")}
        values |= {"rope_theta": self.rope_theta, "rope_scaling": self.rope_scaling and dict(self.rope_scaling)}
        values |= {"architectures": [self.family.architecture], "sliding_window": self.sliding_window}
        if self.family.sliding in ("layers", "pattern"):
            values["layer_types"] = [LAYER_TYPES[sliding] for sliding in self.sliding_layers]
        if self.family.sliding == "layers":
            values["use_sliding_window"] = self.sliding_window is not None
        values |= {name: getattr(self, name) for name in _OF_SOME if getattr(self, name) is not None}
        if self.experts is not None:
            values |= self.experts.changes(self.family.experts)
        # without a padding token, which may lie beyond the vocabulary: transformers gives its embedding no gradient
        values |= {**self.token_ids, "pad_token_id": None}
        return AutoConfig.for_model(self.model_type, **values, **({"auto_map": code} if code else {}))


_OF_SOME = (LOCAL, "query_pre_attn_scalar", "no_rope_layers")
"""Fields that only some families have, under their keys in ``config.json``."""
_LATER = (*_OF_SOME, "experts")
"""Fields that earlier versions did not have."""


def _as_floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_floats(own) for key, own in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
