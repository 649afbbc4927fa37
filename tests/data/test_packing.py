"""The packed layout: sequences, positions, labels across rank borders, padding."""

from __future__ import annotations

import pytest
import torch

from solopo_nemo.data.packing import Layout, local_chunks, pack

NAMES = ("short_chosen", "short_rejected", "long_chosen")
SAMPLES = [
    {
        "id": "0",
        "prompt_short": [1, 2, 3],
        "prompt_long": list(range(10, 40)),
        "chosen": [50, 51, 52],
        "rejected": [60],
    },
    {"id": "1", "prompt_short": [4], "prompt_long": list(range(70, 81)), "chosen": [53], "rejected": [61, 62, 63, 64]},
]
PAIRS = [(SAMPLES[i][p], SAMPLES[i][r]) for i in (0, 1) for p, r in
         (("prompt_short", "chosen"), ("prompt_short", "rejected"), ("prompt_long", "chosen"))]  # fmt: skip


def test_one_rank_holds_the_sequences_one_after_the_other() -> None:
    batch = pack(SAMPLES, NAMES, Layout())
    tokens, start = batch["tokens"][0], 0
    for number, (prompt, response) in enumerate(PAIRS):
        ids = prompt + response
        length = len(ids) - 1
        assert tokens[start : start + length].tolist() == ids[:-1]
        assert batch["position_ids"][0, start : start + length].tolist() == list(range(length))
        own = batch["sequence_ids"] == number
        assert batch["labels"][own].tolist() == response
        assert (batch["logit_positions"][own] - start).tolist() == list(range(len(prompt) - 1, length))
        start += length
    assert start == tokens.numel() == int(batch["cu_seqlens"][-1])
    assert batch["response_tokens"].tolist() == [len(r) for _, r in PAIRS]


@pytest.mark.parametrize(("cp", "multiple"), [(2, 1), (4, 1), (2, 2), (1, 2)])
def test_ranks_together_hold_every_scored_row_once(cp: int, multiple: int) -> None:
    whole = pack(SAMPLES, NAMES, Layout())
    want = sorted(zip(whole["sequence_ids"].tolist(), whole["position_ids"][0, whole["logit_positions"]].tolist(),
                      whole["tokens"][0, whole["logit_positions"]].tolist(), whole["labels"].tolist(), strict=True))  # fmt: skip
    got, sizes = [], set()
    for rank in range(cp):
        part = pack(SAMPLES, NAMES, Layout(cp, rank, multiple, pad_id=999))
        rows = part["logit_positions"]
        got += zip(part["sequence_ids"].tolist(), part["position_ids"][0, rows].tolist(), part["tokens"][0, rows].tolist(),
                   part["labels"].tolist(), strict=True)  # fmt: skip
        assert (rows.diff() > 0).all()
        assert part["response_tokens"].equal(whole["response_tokens"])
        assert part["input_tokens"].equal(whole["input_tokens"])
        sizes.add(part["tokens"].numel())
        assert part["tokens"].numel() % multiple == 0
        assert 999 not in part["tokens"][0, rows]
    assert sorted(got) == want
    assert len(sizes) == 1


def test_the_zigzag_chunks_of_all_ranks_cover_a_sequence() -> None:
    layout = [Layout(4, rank) for rank in range(4)]
    chunks = sorted(c for x in layout for c in local_chunks(32, x))
    assert chunks == [(i, i + 4) for i in range(0, 32, 4)]
    assert local_chunks(32, layout[1]) == [(4, 8), (24, 28)]


@pytest.mark.parametrize("cp", [1, 2])
def test_tokens_that_are_not_scored_are_inputs_alone(cp: int) -> None:
    response = [50, ~51, ~52, 53, 54, ~55, 56]
    rows, tokens = [], {}
    for rank in range(cp):
        batch = pack([SAMPLES[0] | {"chosen": response}], ("long_chosen",), Layout(cp, rank))
        places = batch["logit_positions"]
        rows += zip(batch["position_ids"][0, places].tolist(), batch["labels"].tolist(), strict=True)
        tokens |= dict(zip(batch["position_ids"][0].tolist(), batch["tokens"][0].tolist(), strict=True))
        assert batch["response_tokens"].tolist() == [4]
        assert batch["input_tokens"].tolist() == [36]
    assert sorted(rows) == [(29, 50), (32, 53), (33, 54), (35, 56)]
    assert [tokens[place] for place in range(36)] == [*range(10, 40), 50, 51, 52, 53, 54, 55]


def test_several_rejected_responses_make_several_pairs() -> None:
    more = SAMPLES[0] | {"rejected_2": [61, 62], "rejected_3": [63]}
    batch = pack([more, SAMPLES[1] | {"rejected_2": [], "rejected_3": []}], (*NAMES, "long_rejected"), Layout())
    assert batch["response_tokens"].tolist() == [3, 1, 2, 1, 3, 1, 2, 1, 1, 4, 1, 4]
    assert batch["kinds"].tolist() == [0, 1, 1, 1, 2, 3, 3, 3, 0, 1, 2, 3]
    assert batch["pairs"].tolist() == [[0, 1, 4, 5], [0, 2, 4, 6], [0, 3, 4, 7], [8, 9, 10, 11]]
    assert batch["pair_samples"] == [0, 0, 0, 1]
    assert pack([more], ("long_chosen",), Layout())["pairs"].tolist() == [[0]]


def test_an_empty_prompt_or_response_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'0'.* nothing to score in chosen"):
        pack([SAMPLES[0] | {"chosen": [~1]}], NAMES, Layout())
    with pytest.raises(ValueError, match="'0'"):
        pack([SAMPLES[0] | {"chosen": []}], NAMES, Layout())


def test_a_rank_without_a_response_row_has_empty_rows() -> None:
    sample = {"id": "0", "prompt_short": [1] * 30, "prompt_long": [1], "chosen": [2], "rejected": [3]}
    rows = [len(pack([sample], ("short_chosen",), Layout(4, r))["logit_positions"]) for r in range(4)]
    assert sorted(rows) == [0, 0, 0, 1]
    assert pack([sample], ("short_chosen",), Layout(4, 1))["logit_positions"].dtype == torch.int64
