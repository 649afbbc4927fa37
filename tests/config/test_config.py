"""Composition of the configuration: presets, plugins, what is written is what is read."""

from __future__ import annotations

import shlex
from operator import attrgetter
from pathlib import Path

import pytest

from solopo_nemo.config.schema import RunConfig, load_config, read_config, save_config
from solopo_nemo.config.usage import describe
from solopo_nemo.config.world import check_world
from solopo_nemo.objectives import build_objective
from solopo_nemo.objectives.registry import option_fields
from solopo_nemo.runtime.errors import UserError
from solopo_nemo.runtime.options import path_options
from solopo_nemo.runtime.paths import CONF
from solopo_nemo.training.launch import _show

RECIPES = sorted(p.stem for p in (CONF.parent / "recipes").glob("*.py"))
PLUGIN = """
import torch
from solopo_nemo.objectives import Objective, number, register

@register("halved_dpo_of_a_test")
class Halved(Objective):
    bound_constant = 0.6931471805599453
    beta: float = number(1.0, "scale of the reward", above=0.0)

    def reward(self, scores, reference):
        return self.beta * scores.logp / 2

    def f(self, z):
        return -torch.nn.functional.logsigmoid(z)
"""


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes_and_explains_itself(recipe: str) -> None:
    config = load_config(recipe, [])
    assert config.recipe == recipe
    assert config.build_objective().sequences
    text = describe(recipe)
    assert all(f"{group}=" in text for group in ("model", "objective", "data", "parallel", "trainer"))


@pytest.mark.parametrize("model", sorted(p.stem for p in (CONF / "model").glob("*.yaml")))
def test_every_model_composes(model: str) -> None:
    given = ["model.init=FOLDER"] if model == "custom" else []
    config = load_config("solo_dpo", [f"model={model}", *given, "model.rope_scaling={type: yarn, factor: 4.0}"])
    assert config.model.rope_scaling == {"type": "yarn", "factor": 4.0}


@pytest.mark.parametrize("objective", ["dpo", "simpo", "orpo", "ipo", "slic"])
def test_long_po_runs_only_the_long_pair(objective: str) -> None:
    built = load_config("long_po", [f"objective={objective}"]).build_objective()
    assert built.sequences == ("long_chosen", "long_rejected")


@pytest.mark.parametrize("objective", ["dpo", "simpo", "orpo", "ipo", "slic"])
def test_the_embedded_default_holds_the_higher_side(objective: str) -> None:
    assert load_config(f"solo_{objective}", []).objective["detach_higher"] is True


def test_the_full_models_keep_the_papers_form() -> None:
    full = load_config("solo_dpo", ["model=qwen2_5_7b"])
    assert (full.objective["detach_short"], full.objective["detach_higher"]) == (False, False)
    assert (full.objective["alpha"], full.trainer.global_batch, full.optim.lr) == (3.0, 64, 1e-6)
    assert load_config("solo_orpo", ["model=llama3_1_8b"]).objective["alpha"] == 4.0


def test_the_command_line_wins_over_a_preset() -> None:
    config = load_config("solo_dpo", ["optim.lr=0.5", "objective.detach_higher=false"])
    assert (config.optim.lr, config.objective["detach_higher"]) == (0.5, False)


def test_alpha_may_be_left_to_the_run() -> None:
    config = load_config("solo_ipo", ["objective.alpha=auto", "objective.align=both"])
    assert config.auto_alpha
    assert config.build_objective().aligned_answers == ("chosen", "rejected")
    assert not load_config("solo_ipo", []).auto_alpha


@pytest.mark.parametrize(
    ("recipe", "overrides", "culprit"),
    [
        ("solo_dpo", ["objective.align=none"], "objective.align=none"),
        ("long_po", [], "objective.align=none"),
        ("sft", [], "objective.alpha is not an option of sft"),
        ("longpo", [], "objective.alpha is not an option of longpo"),
    ],
)
def test_alpha_is_not_chosen_where_nothing_is_aligned(recipe: str, overrides: list[str], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        load_config(recipe, [*overrides, "++objective.alpha=auto"])


@pytest.mark.parametrize("path", sorted((CONF / "objective").glob("[!p]*.yaml")), ids=lambda p: p.stem)  # not plugin
def test_objective_files_list_every_option_and_no_other(path: Path) -> None:
    listed = {line.split(":")[0] for line in path.read_text().splitlines() if line and line[0] not in " #"}
    options = option_fields(type(build_objective(path.stem)))
    if path.stem in ("longpo", "sft"):  # outside the family: most options are fixed
        options = {name: option for name, option in options.items() if name in listed}
    without_reference = {"alignment_reference"} if path.stem in ("simpo", "orpo", "slic") else set()
    assert options.keys() - listed == without_reference


def test_a_users_own_objective_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_po_of_a_test.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    overrides = ["objective=plugin", "objective.name=halved_dpo_of_a_test", "+objective.beta=0.5"]
    objective = load_config("solo_dpo", [*overrides, "+plugins=[my_po_of_a_test]"]).build_objective()
    assert objective.name == "halved_dpo_of_a_test"
    assert objective.beta == 0.5


PATHS = {
    "lr=1e-6": "lr=1e-6",
    "1e-6": "1e-6",
    "true": "true",
    "a,b [c] {d} 'e' \"f~(1)#é;": "a,b [c] {d} 'e' \"f~(1)#é;",
    "a\\": "a\\",
    "'a, b'": "a, b",
    '"it\'s"': "it's",
    "a\\=b\\ c": "a=b c",
    "./${recipe}=1": "./solo_dpo=1",
    "~/a=b": "/home/me/a=b",
    "~": "/home/me",
    "a/~/b": "a/~/b",
}


def test_paths_are_taken_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    keys = ("output_dir", "model.init", "data.train", "evaluation.data", "trainer.resume", "model.adapter")
    assert set(keys) == set(path_options(RunConfig))
    for start in range(0, len(PATHS), len(keys)):
        given = dict(zip(keys, list(PATHS)[start : start + len(keys)], strict=False))
        config = load_config("solo_dpo", ["peft=lora", *(f"++{key}={text}" for key, text in given.items())])
        for key, text in given.items():
            assert attrgetter(key)(config) == PATHS[text]


def test_a_path_in_brackets_is_printed_whole(capsys: pytest.CaptureFixture[str]) -> None:
    _show(load_config("solo_dpo", ["output_dir=[x] {y}"]))
    assert capsys.readouterr().out.startswith("policy: [x] {y}/hf\nreport: [x] {y}/report")


@pytest.mark.parametrize("text", ["a=b", "a,b", 'it\'s "x" #'])
def test_the_message_shows_the_quoting_that_works(text: str) -> None:
    with pytest.raises(UserError, match=r"cannot be read .* write key=value, what needs quotes as in '") as refused:
        load_config("solo_dpo", [f"logger.wandb={text}"])
    word = shlex.split(str(refused.value).partition("quotes as in ")[2].partition("; a list")[0])[0]
    assert load_config("solo_dpo", [word]).logger.wandb == text


def test_the_message_shows_the_brackets_that_work() -> None:
    with pytest.raises(UserError, match=r"several values.*; a list takes brackets, as in ") as refused:
        load_config("solo_dpo", ["peft=lora", "peft.targets=q_proj,v_proj"])
    word = shlex.split(str(refused.value).partition("brackets, as in ")[2])[0]
    assert load_config("solo_dpo", ["peft=lora", word]).peft.targets == ["q_proj", "v_proj"]


def test_an_unknown_option_is_refused_without_the_search_path() -> None:
    with pytest.raises(UserError, match=r"Available options in 'model': custom .* tiny_qwen2 \("):
        load_config("solo_dpo", ["model=qwen"])


def test_what_is_saved_is_what_is_read(tmp_path: Path) -> None:
    config = load_config("solo_simpo", ["trainer.seed=7"])
    save_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize(
    ("overrides", "world", "culprit"),
    [
        (["parallel.tensor=2"], 3, "world"),
        (["parallel.tensor=2", "parallel.data=4"], 4, "parallel.data"),
        (["trainer.global_batch=6", "trainer.micro_batch=2"], 2, "trainer.global_batch"),
    ],
)
def test_a_world_that_does_not_fit(overrides: list[str], world: int, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        check_world(load_config("solo_dpo", overrides), world)
