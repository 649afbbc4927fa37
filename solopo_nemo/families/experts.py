"""Mixture-of-experts layers in ``config.json``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from solopo_nemo.families.rope import is_number, is_whole
from solopo_nemo.runtime.errors import UserError, require

if TYPE_CHECKING:
    from solopo_nemo.families.reading import Reader


@dataclass(frozen=True)
class Experts:
    """The mixture-of-experts layers of a model.

    Attributes:
        count: experts of a layer.
        chosen: experts that each token is sent to.
        size: width of an expert's MLP.
        normalized: the weights of a token's experts sum to 1; else they are their shares of the softmax over all.
        layers: for each layer, True if it has experts; the others have one MLP of ``intermediate_size``.
        aux_loss: the file's weight of the load-balancing loss.
    """

    count: int
    chosen: int
    size: int
    normalized: bool
    layers: tuple[bool, ...]
    aux_loss: float

    def changes(self, names: Any) -> dict[str, Any]:
        """The keys of ``config.json`` that say this, by a family's ``ExpertNames``."""
        found: dict[str, Any] = {names.count: self.count, names.size: self.size, "num_experts_per_tok": self.chosen}
        found |= {"router_aux_loss_coef": self.aux_loss}
        if not names.normalized:
            dense = [number for number, has in enumerate(self.layers) if not has]
            found |= {"norm_topk_prob": self.normalized, "decoder_sparse_step": 1, "mlp_only_layers": dense}
        return found


def read_experts(read: Reader, layers: int) -> Experts | None:
    """The experts of a model with ``layers`` layers; ``None`` for a family without.

    Raises:
        UserError: a key is invalid, or no layer has experts.
    """
    names, where = read.family.experts, read.where
    if names is None:
        return None
    count, chosen = read.whole(names.count), read.whole("num_experts_per_tok")
    require(chosen <= count, f"{where}: num_experts_per_tok={chosen} is more than {names.count}={count}")
    normalized = names.normalized or read.truth("norm_topk_prob")
    if normalized and chosen == 1:
        raise UserError(
            f"{where}: num_experts_per_tok=1 with normalized weights is not supported: every expert has weight 1, and "
            "the router learns nothing"
        )
    weight = read.value("router_aux_loss_coef")
    if not is_number(weight) or weight < 0:
        raise read.wrong("router_aux_loss_coef", weight, "a number of 0 or more")
    return Experts(count, chosen, read.whole(names.size), normalized, _layers(read, layers), float(weight))


def _layers(read: Reader, layers: int) -> tuple[bool, ...]:
    if read.family.experts is None or read.family.experts.normalized:  # Mixtral has experts in every layer
        return (True,) * layers
    step, stated = read.whole("decoder_sparse_step"), read.value("mlp_only_layers")
    dense = [] if stated is None else stated
    if not isinstance(dense, list) or not all(is_whole(n, 0, layers - 1) for n in dense):
        raise read.wrong("mlp_only_layers", dense, f"a list of layers from 0 to {layers - 1}")
    found = tuple((n + 1) % step == 0 and n not in dense for n in range(layers))
    if not any(found):
        raise UserError(
            f"{read.where}: no layer has experts by decoder_sparse_step={step} and mlp_only_layers={dense}: such a "
            "model is a Qwen3"
        )
    return found
