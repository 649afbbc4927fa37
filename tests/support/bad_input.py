"""Bad input of every kind: the broken files, and all cases put together."""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bad_commands import LAUNCHED, RECIPES, TOOLS

PROMPT = [{"role": "user", "content": "Who wrote it?"}]
ROW: dict[str, Any] = {"id": "a", "prompt_short": PROMPT, "prompt_long": PROMPT, "chosen": "Ann.", "rejected": "Bob."}
TALK = [
    {"role": "assistant", "content": "Ann."},
    {"role": "user", "content": "Sure?"},
    {"role": "assistant", "content": "Yes."},
]
QUESTION = {
    "id": "q",
    "question": "Who?",
    "answers": ["Ann"],
    "supporting": [{"title": "t", "text": "Ann did."}],
    "distractors": [{"title": "u", "text": "Bob sat."}],
}


@dataclass(frozen=True)
class Case:
    """A command line and what has to be in its complaint."""

    name: str
    command: str
    arguments: tuple[str, ...]
    culprits: tuple[str, ...]
    environment: dict[str, str]


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in ROW.items() if k != key}


DATA: dict[str, tuple[list[Any], tuple[str, ...]]] = {
    "broken line 4711": ([ROW | {"id": str(i)} for i in range(4710)] + ['{"id": '], (":4711",)),
    "an array": (["[1, 2]"], (":1", "list")),
    "a number": ([ROW, "7"], (":2", "int")),
    "a bare NaN": (["NaN"], (":1", "float")),
    "no id": ([without("id")], (":1", "id")),
    "id of another type": ([ROW | {"id": [1]}], (":1", "id")),
    "id that pandas left out": ([ROW | {"id": float("nan")}], (":1", "id", "nan")),
    "same id in two spellings": ([ROW | {"id": 17.0}, ROW | {"id": 17}], (":2", "id", "'17'")),
    "same answers": ([ROW | {"rejected": ROW["chosen"] + " "}], (":1", "same answer in every row")),
    "same id twice": ([ROW, ROW], (":2", "id")),
    "missing chosen": ([without("chosen")], (":1", "chosen")),
    "missing rejected": ([without("rejected")], (":1", "rejected")),
    "null chosen": ([ROW | {"chosen": None}], (":1", "chosen")),
    "wrong type": ([ROW | {"chosen": 7}], (":1", "chosen")),
    "empty response": ([ROW | {"rejected": ""}], (":1", "rejected")),
    "blank response": ([ROW | {"rejected": " \n"}], (":1", "rejected")),
    "half a surrogate": ([json.dumps(ROW)[:-1] + ', "rejected": "\\ud800"}'], (":1", "rejected")),
    "response of another role": ([ROW | {"chosen": PROMPT}], (":1", "chosen", "assistant")),
    "no long prompt": ([without("prompt_long")], (":1", "prompt_long")),
    "ShareGPT": ([ROW | {"prompt_short": [{"from": "human", "value": "x"}]}], (":1", "prompt_short[0]", "ShareGPT")),
    "one message without a list": ([ROW | {"chosen": PROMPT[0]}], (":1", "chosen", "put this one into a list")),
    "reasoning": ([ROW | {"reasoning": "so"}], (":1", "field reasoning", "message")),
    "a picture in a column": ([ROW | {"image_url": "x"}], (":1", "image_url", "not text")),
    "text and a picture": (
        [ROW | {"prompt_short": [{"role": "user", "content": [{"type": "text"}, {"type": "image_url"}]}]}],
        (":1", "prompt_short[0].content", "['text', 'image_url']"),
    ),
    "empty prompt": ([ROW | {"prompt_long": []}], (":1", "prompt_long")),
    "prompt without a question": ([ROW | {"prompt_long": [{"role": "system", "content": "x"}]}], (":1", "'user'")),
    "message without content": ([ROW | {"prompt_long": [{"role": "user"}]}], (":1", "prompt_long")),
    "unknown role": ([ROW | {"prompt_short": [{"role": "human", "content": "x"}]}], (":1", "human")),
    "messages and a string": ([ROW | {"prompt_long": "Who wrote it?"}], (":1", "prompt_long")),
    "vanilla row": ([{"prompt": "p", "chosen": "a", "rejected": "b"}], (":1", "long_po")),
    "empty file": ([], ("empty_file.jsonl",)),
    "joined to its prompt": (
        [ROW | {"prompt_short": "Who: ", "prompt_long": "Who: "}],
        (":1", "chosen", "white space"),
    ),
    "a system field": ([ROW | {"system": "Be brief."}], (":1", "system", "first message")),
    "tools that are not written": ([ROW | {"tools": [{"name": "f"}]}], (":1", "prompt_short", "tools")),
    "switch of no template": ([ROW | {"chat_template_kwargs": {"think": 1}}], (":1", "chat_template_kwargs.think")),
    "calls that are not written": (
        [ROW | {"prompt_short": [*PROMPT, {"role": "assistant", "content": "x", "tool_calls": [{}]}, *PROMPT]}],
        (":1", "prompt_short[1].tool_calls"),
    ),
    "call without text": (
        [ROW | {"prompt_short": [{"role": "assistant", "content": None, "tool_calls": [{}]}, *PROMPT]}],
        (":1", "prompt_short", "refuses these messages"),
    ),
    "reasoning of an answer": (
        [ROW | {"chosen": [{"role": "assistant", "content": "x", "reasoning_content": "y"}]}],
        (":1", "chosen[0].reasoning_content"),
    ),
    "turns after a plain prompt": (
        [ROW | {"prompt_short": "Who?", "prompt_long": "Who?", "chosen": TALK}],
        (":1", "field chosen:", "plain string"),
    ),
    "turns without an answer at the end": (
        [ROW | {"chosen": TALK[:2]}],
        (":1", "field chosen:", "end with 'assistant'"),
    ),
    "two turns of the assistant": ([ROW | {"rejected": [TALK[0], TALK[2]]}], (":1", "rejected[1].role", "join")),
    "a call of an answer that is not written": (
        [ROW | {"chosen": [TALK[0] | {"tool_calls": [{}]}, *TALK[1:]]}],
        (":1", "chosen[0].tool_calls", "leaves it out"),
    ),
    "a result of a call, without text": (
        [ROW | {"chosen": [TALK[0], {"role": "tool"}, TALK[2]]}],
        (":1", "chosen[1]", "content"),
    ),
    "an unknown role in an answer": (
        [ROW | {"chosen": [TALK[0], {"role": "function", "content": "x"}, TALK[2]]}],
        (":1", "chosen[1].role", "function"),
    ),
    "a picture in an answer": (
        [ROW | {"chosen": [TALK[0], TALK[1] | {"images": ["a.png"]}, TALK[2]]}],
        (":1", "chosen[1].images", "not text"),
    ),
    "an end token in a turn": (
        [ROW | {"chosen": [TALK[0] | {"content": "a<|im_end|>b"}, *TALK[1:]]}],
        (":1", "chosen[0].content", "'<|im_end|>'"),
    ),
    "a conversation of another prompt": (
        [ROW | {"chosen": [{"role": "user", "content": "When?"}, *TALK]}],
        (":1", "prompt_short", "the responses start with"),
    ),
    "several chosen answers": ([ROW | {"chosen": ["Ann.", "Al."]}], (":1", "field chosen:", "a list of answers")),
    "several chosen conversations": ([ROW | {"chosen": [TALK, TALK]}], (":1", "field chosen:", "a list of answers")),
    "rejected answers of two kinds": ([ROW | {"rejected": ["Bob.", TALK]}], (":1", "field rejected:", "mixes")),
    "an answer beside messages": ([ROW | {"rejected": [*TALK, "Bob."]}], (":1", "field rejected:", "mixes")),
    "a number among rejected answers": ([ROW | {"rejected": ["Bob.", 7]}], (":1", "field rejected:", "mixes")),
    "no rejected answers": ([ROW | {"rejected": []}], (":1", "field rejected:", "empty")),
    "an empty one of the rejected answers": ([ROW | {"rejected": ["Bob.", " "]}], (":1", "rejected[1]", "empty")),
    "rejected answers that are the chosen one": (
        [ROW | {"rejected": ["Ann.", "Ann. "]}],
        (":1", "same answer in every row"),
    ),
    "a long one of the rejected answers": ([ROW | {"rejected": ["Bob.", "word " * 20000]}], (":1", "data.max_tokens")),
    "messages as text": ([ROW | {"prompt_short": json.dumps(PROMPT)}], (":1", "prompt_short", "the list itself")),
    "a picture": (
        [ROW | {"prompt_short": [{"role": "user", "content": [{"type": "image"}]}]}],
        (":1", "prompt_short[0].content", "['image']"),
    ),
    "content null": ([ROW | {"prompt_short": [{"role": "user", "content": None}]}], (":1", "content")),
    "too long": ([ROW | {"prompt_long": [{"role": "user", "content": "word " * 20000}]}], (":1", "data.max_tokens")),
}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def file_of(case: str) -> str:
    return case.replace(" ", "_") + ".jsonl"


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


def make_material(bad: Path, model: Path) -> None:
    """Fill the folder of broken things."""
    import datasets

    for case, (rows, _) in DATA.items():
        write(bad / file_of(case), rows)
    write(bad / "ok.jsonl", [ROW])
    write(bad / "plain.jsonl", [ROW | {"prompt_short": "Who?", "prompt_long": "Who wrote it?"}])
    write(bad / "contexts.jsonl", [ROW | {"answers": ["Ann"]}])
    write(bad / "questions.jsonl", [QUESTION | {"id": str(i)} for i in range(4)])
    (bad / "empty").mkdir()
    (bad / "no_data").mkdir()
    (bad / "no_data" / "notes.txt").write_text("x")
    (bad / "text.txt").write_text("x")
    (bad / "latin.jsonl").write_bytes(b'{"id": "Andr\xe9"}\n')
    (bad / "cut.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROW).encode() * 50)[:-20])
    (bad / "not.jsonl.gz").write_bytes(b"plain")
    (bad / "not.parquet").write_bytes(b"plain")
    splits = datasets.DatasetDict({name: datasets.Dataset.from_list([{"id": "a"}]) for name in ("train", "test")})
    splits.save_to_disk(bad / "splits")
    (bad / "test_alone").mkdir()
    for name in ("a.jsonl", "test.jsonl"):
        write(bad / "test_alone" / name, [ROW])
    _make_models(bad, model)
    _make_checkpoints(bad, model)


def add_token(folder: Path, token: str, **settings: Any) -> None:
    """Give a model's tokenizer a special token whose id is the model's vocab_size, and other settings."""
    file, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    state, size = json.loads(file.read_text()), json.loads((folder / "config.json").read_text())["vocab_size"]
    # the ids of added tokens have no holes
    spare = {number: f"<|spare {number}|>" for number in range(len(state["model"]["vocab"]), size)}
    for number, text in (spare | {size: token}).items():
        state["added_tokens"].append(state["added_tokens"][0] | {"id": number, "content": text})
    file.write_text(json.dumps(state))
    old = {key: value for key, value in json.loads(config.read_text()).items() if key != "added_tokens_decoder"}
    config.write_text(json.dumps(old | settings))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def _make_models(bad: Path, model: Path) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(model, bad / name)
        return bad / name

    def settings(folder: Path, file: str, **changes: Any) -> None:
        old = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({k: v for k, v in (old | changes).items() if v is not None}))

    template = copy("no_template")
    (template / "chat_template.jinja").unlink()
    settings(template, "tokenizer_config.json", chat_template=None)
    (copy("broken_config") / "config.json").write_text('{"model_type": ')
    settings(copy("other_family"), "config.json", model_type="gpt2")
    settings(copy("unknown_family"), "config.json", model_type="no_such_family")
    settings(copy("unknown_key"), "config.json", logit_scale=0.5)
    settings(copy("two_thetas"), "config.json", rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    settings(copy("text_size"), "config.json", hidden_size="128")
    of_experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
    experts = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"]} | of_experts
    gemma = {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_key_value_heads": 1}
    gemma |= {"sliding_window": 512, "tie_word_embeddings": True}
    without = ("hidden_act", "layer_types", "max_window_layers", "use_sliding_window", *of_experts)
    for name, changes in {
        "experts": {},
        "experts_many": {"num_experts_per_tok": 9},
        "experts_one": {"num_experts_per_tok": 1},
        "experts_nowhere": {"decoder_sparse_step": 100},
        "experts_layer": {"mlp_only_layers": [100]},
        "experts_first": {"mlp_only_layers": [1]},
        "experts_then": {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4, "mlp_only_layers": [0]},
        "experts_shared": {"shared_expert_intermediate_size": 64},
        "experts_noise": {"router_jitter_noise": 0.1},
        "experts_odd": {"moe_intermediate_size": 63},
        "experts_qwen2": {"model_type": "qwen2_moe"},
        "gemma": gemma | dict.fromkeys(without),
    }.items():
        (bad / name).mkdir()
        shutil.copyfile(model / "config.json", bad / name / "config.json")
        settings(bad / name, "config.json", **experts)
        settings(bad / name, "config.json", **changes)
    settings(copy("text_end"), "generation_config.json", eos_token_id="</s>")
    settings(copy("newer_family"), "config.json", model_type="gemma", rope_parameters={"rope_theta": 7.0})
    two = copy("two_weights")
    shutil.copyfile(two / "model.safetensors", two / "shard.safetensors")
    (two / "model.safetensors.index.json").write_text('{"weight_map": {"model.norm.weight": "shard.safetensors"}}')
    (copy("no_weights") / "model.safetensors").unlink()
    (copy("with_adapter") / "adapter_config.json").write_text("{}")
    (bad / "adapter").mkdir()
    (bad / "adapter" / "adapter_config.json").write_text("{}")
    weights = copy("cut_weights") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    tokenizer = copy("no_tokenizer")
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (tokenizer / file).unlink()
    (copy("broken_tokenizer") / "tokenizer.json").write_text("{")
    settings(copy("mistral_common"), "tokenizer_config.json", tokenizer_class="MistralCommonBackend", backend="tekken")
    end = copy("end_beyond")
    add_token(end, "<|done|>", eos_token="<|done|>")
    template = end / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", "<|done|>"))
    thinks = copy("opens_think") / "chat_template.jinja"
    thinks.write_text(thinks.read_text().removesuffix("{% endif %}") + "<think>\n{% endif %}")
    settings(copy("no_eos"), "tokenizer_config.json", eos_token=None)
    for file in ("special_tokens_map.json",):
        (bad / "no_eos" / file).write_text("{}")


def _make_checkpoints(bad: Path, model: Path) -> None:
    from solopo_nemo.training.checkpoints.files import record_file, write_manifest

    def checkpoint(name: str, hf: bool = True, manifest: bool = True) -> Path:
        folder = bad / name
        for file in ("weights/metadata.json", "weights/__0_0.distcp", "context/io.json"):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text("{}")
        with (folder / "weights" / ".metadata").open("wb") as stream:
            pickle.dump(Bomb(bad / "exploded"), stream)
        if hf:
            shutil.copytree(model, folder / "hf", ignore=shutil.ignore_patterns("*.safetensors"))
        if manifest:
            files = [p for p in folder.rglob("*") if p.is_file()]
            write_manifest(folder, {str(p.relative_to(folder)): record_file(p) for p in files})
        return folder

    checkpoint("without_hf", hf=False)
    checkpoint("foreign/step_000004", manifest=False)
    (checkpoint("cut/step_000004") / "weights" / "__0_0.distcp").write_text("")
    (checkpoint("lost/step_000004") / "context" / "io.json").unlink()
    changed = checkpoint("changed/step_000004") / "weights" / "__0_0.distcp"
    changed.write_text("[]")
    checkpoint("named_oddly")


def _rows(table: str) -> Iterator[list[str]]:
    for line in table.strip().splitlines():
        yield [cell.strip() for cell in line.split("|")]


def cases() -> list[Case]:
    """All cases."""
    found = [Case(name, "solo_dpo", tuple(words.split()), (culprit,), {}) for name, words, culprit in _rows(RECIPES)]
    for name, (_, culprits) in DATA.items():
        words = (f"data.train={{bad}}/{file_of(name)}", "data.max_tokens=2000")
        found.append(Case(f"data: {name}", "solo_dpo", words, culprits, {}))
    for name, command, words, culprit in _rows(TOOLS):
        found.append(Case(name, command, tuple(words.split()), (culprit,), {}))
    for name, (overrides, environment, culprit) in LAUNCHED.items():
        found.append(Case(name, "solo_dpo", tuple(overrides), (culprit,), environment))
    return found
