"""Every parallel layout that must agree with one process, one line each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    name: str
    world: int
    tp: int = 1
    sp: bool = False
    cp: int = 1
    cp_mode: str = "p2p"
    pp: int = 1
    tied: bool = False
    recompute: str = ""
    family: str = "qwen2"
    again: bool = False
    """Its kinds of parallelism are other lines' too: the gate takes the objectives :data:`SAMPLED` alone."""
    window: int = 0
    """Sliding window of Gemma 3's local layers, in tokens; a context rank has 10 to 35 tokens of a long sequence."""
    ep: int = 1
    etp: int = 1
    turns: bool = False
    """Answers of several turns, whose scored tokens have gaps, and several rejected answers in some samples."""


EXPERTS = ("qwen3_moe", "mixtral")
"""Families with experts."""
SINGLE = Layout("single", 1)
TURNS = Layout("single", 1, turns=True)
LAYOUTS = (
    Layout("recompute", 1, recompute="full"),
    Layout("tp2", 2, tp=2),
    Layout("tp2_sp", 2, tp=2, sp=True),
    Layout("cp2_p2p", 2, cp=2),
    Layout("cp2_a2a", 2, cp=2, cp_mode="a2a"),
    Layout("pp2", 2, pp=2),
    Layout("dp2_distopt", 2),
    Layout("tp2_sp_tied", 2, tp=2, sp=True, tied=True, again=True),
    Layout("pp2_tied", 2, pp=2, tied=True, again=True),
    Layout("cp2_sel_recompute", 2, cp=2, recompute="core_attn", again=True),
    Layout("tp2_sp_llama", 2, tp=2, sp=True, family="llama", again=True),
    Layout("tp2_sp_qwen3", 2, tp=2, sp=True, family="qwen3", again=True),
    Layout("tp2_cp2_sp", 4, tp=2, cp=2, sp=True, again=True),
    Layout("tp2_pp2_sp", 4, tp=2, pp=2, sp=True, again=True),
    Layout("cp4_p2p", 4, cp=4, again=True),
    Layout("cp4_a2a_kv_repeated", 4, cp=4, cp_mode="a2a", again=True),
    Layout("cp2_pp2", 4, cp=2, pp=2, again=True),
    Layout("tp2_sp_gemma3", 2, tp=2, sp=True, tied=True, family="gemma3_text", window=6, again=True),
    Layout("cp2_a2a_gemma3", 2, cp=2, cp_mode="a2a", tied=True, family="gemma3_text", window=6, again=True),
    Layout("cp2_a2a_gemma3_wide", 2, cp=2, cp_mode="a2a", tied=True, family="gemma3_text", window=45, again=True),
    Layout("pp2_gemma3", 2, pp=2, tied=True, family="gemma3_text", window=6, again=True),
    Layout("cp2_turns", 2, cp=2, turns=True, again=True),
    Layout("ep2", 2, ep=2, family="qwen3_moe", again=True),
    Layout("tp2_ep2", 2, tp=2, sp=True, ep=2, family="mixtral", again=True),
    Layout("cp2_ep2", 2, cp=2, ep=2, family="qwen3_moe", again=True),
    Layout("tp2_etp2", 2, tp=2, sp=True, etp=2, family="qwen3_moe", again=True),
    Layout("pp2_moe", 2, pp=2, recompute="full", family="qwen3_moe", again=True),
    Layout("tp2_ep2_dp2", 4, tp=2, sp=True, ep=2, family="qwen3_moe", again=True),
    Layout("cp2_ep2_dp2", 4, cp=2, ep=2, family="qwen3_moe", again=True),
    Layout("pp2_ep2", 4, pp=2, ep=2, family="qwen3_moe", again=True),
    Layout("tp2_pp2_ep2", 4, tp=2, sp=True, pp=2, ep=2, family="qwen3_moe", again=True),
)

OBJECTIVES = {
    "solo_dpo": ("dpo", dict(alpha=3.0)),
    "solo_dpo_full_reference": ("dpo", dict(alpha=1.0, alignment_reference="full")),
    "solo_simpo": ("simpo", dict(alpha=1.0)),
    "solo_orpo": ("orpo", dict(alpha=1.0)),
    "solo_orpo_both": ("orpo", dict(alpha=1.0, align="both")),
    "solo_ipo": ("ipo", dict(alpha=1.0)),
    "solo_slic": ("slic", dict(alpha=1.0)),
    "long_dpo": ("dpo", dict(align="none", prompt="long")),
    "longpo": ("longpo", dict()),
    "sft_long": ("sft", dict(prompt="long")),
}
TRAINED = ("solo_dpo", "solo_simpo", "solo_orpo", "solo_orpo_both", "solo_ipo", "solo_slic")
"""Objectives that are also followed over several optimizer steps."""
SAMPLED = ("solo_dpo", "longpo")


def is_compared_in_gate(layout: Layout, objective: str) -> bool:
    """Whether the gate has this cell: each family of objectives, its variants in turn. ``.ci/long`` has the others."""
    if layout.family in EXPERTS:
        return layout.world == 2 and objective == "solo_dpo"
    if layout.again or objective in SAMPLED:
        return objective in SAMPLED
    family = [name for name, (kind, _) in OBJECTIVES.items() if kind == OBJECTIVES[objective][0]]
    return objective == family[LAYOUTS.index(layout) % len(family)]


def is_followed_in_gate(layout: Layout, objective: str) -> bool:
    """Whether the gate follows this cell over several steps: one objective of each layout, each in turn."""
    if layout.family in EXPERTS:
        return is_compared_in_gate(layout, objective)
    return objective == TRAINED[0 if layout.again else LAYOUTS.index(layout) % len(TRAINED)]
