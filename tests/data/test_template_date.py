"""Chat templates that write the date: one day for all prompts of a run, whenever they are encoded."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, DATED
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pair_samples import FakeBackend, asked_row
from samples import RowWriter, TokenizerMaker, triplet_row

from solopo_nemo.builders.contexts.settings import BuildSettings
from solopo_nemo.builders.contexts.shards import ShardFolder, planned_date
from solopo_nemo.builders.contexts.sources.source import RowSource
from solopo_nemo.builders.pairs.backend import Sampling
from solopo_nemo.builders.pairs.run import PairSettings, sample_pairs
from solopo_nemo.config.schema import load_config
from solopo_nemo.data import tokenizer_files
from solopo_nemo.data.template_date import KEY, pin_date, pinned_date
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.evaluation.models import EvaluatedModel, ModelSettings
from solopo_nemo.evaluation.run import _settle
from solopo_nemo.families.hf import copy_template
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.paths import EMBEDDED_MODEL
from solopo_nemo.runtime.warn import say_once
from solopo_nemo.training.paths import Paths
from solopo_nemo.training.prepare import keep_date
from solopo_nemo.training.start import Start

DAY = datetime.date(2026, 3, 5)
MESSAGES = [{"role": "user", "content": "Which day is it? 5 %d%%"}]


def render(template: str, day: datetime.date, **switches: Any) -> str:
    """As transformers does, on a day."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["strftime_now"] = datetime.datetime.combine(day, datetime.time()).strftime
    return environment.from_string(template).render(messages=MESSAGES, add_generation_prompt=True, **switches)


def travel(monkeypatch: pytest.MonkeyPatch, day: datetime.date) -> None:
    class Day(datetime.date):
        @classmethod
        def today(cls) -> Any:
            return day

    monkeypatch.setattr(tokenizer_files, "date", Day)


@pytest.mark.parametrize("day", [DAY, datetime.date(2027, 12, 31)])
@pytest.mark.parametrize(
    ("template", "switches"),
    [
        (DATED, {}),
        (DATED, {"date_string": "1 Apr"}),
        ("\n  {{- strftime_now('%A, %d/%m/%y %-d %% %j %c') }}\n{% if true %}\n x{% endif %}", {}),
        ("{{ strftime_now('%R %h %D %T %C%g%G %k %l %P %r %n%t %%R %-H') }}", {}),
        ("\n\n{{ strftime_now(form) }}{% macro f() %}{{ strftime_now('%B') }}{% endmacro %}{{ f() }}", {"form": "%Y%%"}),
        ("{%- set d = strftime_now(\"%b's\") | upper %}{% for m in messages %}{{ d + m.content }}{% endfor %}", {}),
    ],
)  # fmt: skip
def test_a_pinned_template_writes_what_the_template_writes_on_that_day(
    template: str, switches: dict[str, str], day: datetime.date, make_tokenizer: TokenizerMaker
) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = template
    assert pin_date(tokenizer, day) and pinned_date(tokenizer) == str(day)
    written = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, **switches)
    assert written == render(template, day, **switches)


def test_other_templates_stay_and_named_ones_are_pinned_each(make_tokenizer: TokenizerMaker) -> None:
    tokenizer = make_tokenizer(None)
    tokenizer.chat_template = CHATML
    assert not pin_date(tokenizer, DAY)
    assert (tokenizer.chat_template, pinned_date(tokenizer)) == (CHATML, None)
    tokenizer.chat_template = {"default": DATED, "tool_use": CHATML}
    assert pin_date(tokenizer, DAY)
    assert "05 Mar 2026" in str(tokenizer.apply_chat_template(MESSAGES, tokenize=False))


@pytest.fixture
def dated_model(tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(EMBEDDED_MODEL, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text(DATED)
    return folder


def test_a_run_keeps_the_day_of_its_data(
    dated_model: Path,
    write_rows: RowWriter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = [f"model.init={dated_model}", f"data.train={write_rows([triplet_row(0), triplet_row(1)])}"]
    config = load_config("solo_dpo", ["model=custom", *given, f"output_dir={tmp_path / 'run'}"])
    travel(monkeypatch, DAY)
    say_once.cache_clear()
    start = Start(config, 1, on_gpu=False)
    first = start.prepared
    text = start.tokenizer.decode(first.dataset[0]["prompt_short"])
    assert "Today Date: 05 Mar 2026 00:00:00" in text
    assert first.summary["date"] == "2026-03-05"
    travel(monkeypatch, DAY + datetime.timedelta(days=300))
    again = Start(config, 1, on_gpu=False)
    assert again.prepared.fingerprint == first.fingerprint
    assert again.prepared.summary["inputs"] == first.summary["inputs"], "nothing is encoded again"
    (today, pinned) = [r.getMessage() for r in caplog.records if "write the date" in r.getMessage()]
    assert "2026-03-05, today, in all prompts" in today
    assert "2026-03-05, the day of this run's data" in pinned
    # the initial weights, of a user's own checkpoint, get a folder of their own; the export has what they have
    initial, export = Paths(config.output).initial / "hf", tmp_path / "export"
    initial.parent.mkdir()
    initial.symlink_to(dated_model)
    keep_date(again)
    keep_date(again)
    copy_template(initial, export, {})
    assert KEY not in json.loads((dated_model / "tokenizer_config.json").read_text())
    assert pinned_date(load_tokenizer(export)) == "2026-03-05"
    assert load_tokenizer(export).chat_template == start.tokenizer.chat_template
    assert pinned_date(load_tokenizer(dated_model)) == "2026-12-30"
    # the checkpoint tells the day as well
    shutil.copytree(export, Paths(config.output).checkpoints / "step_000001" / "hf")
    shutil.rmtree(Paths(config.output).tokenized)
    assert Start(config, 1, on_gpu=False).tokenizer.chat_template == start.tokenizer.chat_template
    # another run, from a checkpoint of this one
    shutil.copytree(export, tmp_path / "step_000001" / "hf")
    other = [f"output_dir={tmp_path / 'other'}", f"trainer.resume={tmp_path / 'step_000001'}"]
    assert Start(load_config("solo_dpo", ["model=custom", *given, *other]), 1).tokenizer.chat_template == (
        start.tokenizer.chat_template
    )


def test_an_evaluation_and_a_sampling_keep_the_day_on_which_they_began(
    dated_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contexts, made = tmp_path / "contexts.jsonl", list[Sampling]()
    contexts.write_text(json.dumps(asked_row(0)) + "\n")

    def make(sampling: Sampling) -> FakeBackend:
        made.append(sampling)
        return FakeBackend()

    evaluated, settings = [], ModelSettings(str(dated_model))
    for days in (0, 1):
        travel(monkeypatch, DAY + datetime.timedelta(days))
        opened = EvaluatedModel(settings, tmp_path / "work")
        _settle(tmp_path, settings, opened)
        evaluated.append(pinned_date(opened.tokenizer))
        sampling = Sampling("hf", str(dated_model), samples=4)
        summary = sample_pairs(PairSettings(contexts, tmp_path / "out.jsonl"), sampling, make)
        assert summary["prompts"] == {"sampled": 1 - days, "reused": days}
    assert evaluated == [sampling.date for sampling in made] == ["2026-03-05"] * 2


def test_the_accuracy_before_training_takes_the_day_of_the_data(dated_model: Path, tmp_path: Path) -> None:
    settings = ModelSettings(str(dated_model), date="2026-01-02")
    opened = EvaluatedModel(settings, tmp_path / "work")
    _settle(tmp_path, settings, opened)
    assert pinned_date(opened.tokenizer) == "2026-01-02"


def test_contexts_that_were_begun_keep_their_day(
    dated_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "questions.jsonl"
    source.write_text("{}\n")
    settings, plans = BuildSettings(str(source), tmp_path / "out.jsonl", "100", "200"), []
    for days in (0, 1):
        travel(monkeypatch, DAY + datetime.timedelta(days))
        tokenizer = load_tokenizer(dated_model, day=planned_date(settings.work))
        plans.append(settings.plan(RowSource(source), [], tokenizer))
        with ShardFolder(settings.work).opened(plans[-1]):
            pass
    assert plans[0] == plans[1]
    assert plans[0]["date"] == "2026-03-05"


def test_a_day_that_is_none(dated_model: Path) -> None:
    file = dated_model / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {KEY: "tomorrow"}))
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template_date='tomorrow' is no day such as 20"):
        load_tokenizer(dated_model)
