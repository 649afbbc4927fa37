"""The starting model measured: scores, angles of gradients, and the push on the short side against a real small step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from solopo_nemo.objectives import build_objective
from studies.collapse import start as measured
from studies.collapse.cells import FORMS, OBJECTIVES
from studies.collapse.start import NAMES, load_model, measure_start, read_samples, replay, score
from studies.reproduction.start import Pretraining, make_model, make_tokenizer
from studies.reproduction.world import training_questions


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    make_model(Pretraining(layers=1, width=32)).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    rows = [
        row | {"chosen": row["answers"][0], "rejected": row["answers"][0][:4] + " a001"}
        for row in training_questions(40, 0, 4, 8)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_scores_are_those_of_each_sequence_alone(start: Path, pairs: Path) -> None:
    model, samples = load_model(start), read_samples(start, pairs, 5)
    together = score(model, samples)
    assert together["short_rejected"].tokens.tolist() == [3] * 5  # a key, a value and the end
    for name in NAMES:
        alone = torch.cat([score(model, [sample], [name])[name].logp for sample in samples])
        torch.testing.assert_close(together[name].logp, alone)
    prompt, response = (torch.tensor(samples[0][column]) for column in ("prompt_long", "chosen"))
    logits = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
    torch.testing.assert_close(
        together["long_chosen"].logp[0], logits.log_softmax(-1).gather(1, response[:, None]).sum()
    )


def test_the_facts_of_a_start(start: Path, pairs: Path) -> None:
    facts = measure_start(start, pairs, 2)
    assert facts.tokens == 4
    assert -1 <= facts.cosine <= 1
    assert all(gap * facts.tokens >= abs(facts.logp_short - facts.logp_long) for gap in facts.gaps.values())
    assert 0 <= facts.ahead <= 1
    assert facts.critical.keys() == OBJECTIVES.keys()
    # untrained, it has no gap to speak of, and that one's sign is by chance: then nothing is pulled down
    assert all(alpha >= 0 for alpha in facts.critical.values())


@pytest.mark.parametrize(("name", "form"), [("dpo", "free"), ("orpo", "short"), ("simpo", "higher")])
def test_the_pushes_are_what_a_small_step_does(
    start: Path, pairs: Path, name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "STEPS", 2)
    first = replay(start, pairs, name, form, 2).velocities[0]
    model, samples = load_model(start).double(), read_samples(start, pairs, measured.BATCH)
    scores = score(model, samples)
    reference = {n: s.logp.detach() for n, s in scores.items()}
    loss = build_objective(name, alpha=1.0, **dict.fromkeys(FORMS[form].options, True))(scores, reference).loss
    step = 1e-6
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter -= step * gradient
        moved = score(model, samples)["short_chosen"].logp.mean() - scores["short_chosen"].logp.mean()
    assert first.rest + first.own + first.carried == pytest.approx(moved.item() / step, rel=1e-2)
    assert (first.own == 0) == (form == "short")
