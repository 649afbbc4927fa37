"""The model under evaluation: a Hugging Face folder, a NeMo checkpoint, or an OpenAI-compatible server."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.vocabulary import check_tokenizer
from solopo_nemo.families import hf
from solopo_nemo.runtime import device
from solopo_nemo.runtime.cli import TEMPLATE_KWARGS
from solopo_nemo.runtime.errors import UserError, require, require_at_least
from solopo_nemo.runtime.json_files import json_hash, read_json
from solopo_nemo.runtime.paths import refuse_run_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_A_BATCH = 8192
"""Prompt tokens in a batch on a CPU. A GPU takes :data:`GPU_BATCH` times as many."""
GPU_BATCH = 8


NO_PENALTIES = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "diversity_penalty": 0.0,
    "length_penalty": 1.0,
    "num_beams": 1,
    "min_length": 0,
    **dict.fromkeys(
        ("min_new_tokens", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias",
         "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "guidance_scale",
         "penalty_alpha", "prompt_lookup_num_tokens")
    ),
}  # fmt: skip
"""Settings of ``generation_config.json`` that change which token is the greedy one, and their neutral values."""


def penalties(config: dict[str, Any]) -> dict[str, Any]:
    """The settings of a ``generation_config.json`` that would change greedy answers."""
    return {name: config[name] for name, plain in NO_PENALTIES.items() if config.get(name) not in (None, plain)}


@dataclass(frozen=True)
class ModelSettings:
    """The model under evaluation and how to run it.

    Attributes:
        model: Hugging Face folder, NeMo checkpoint, or the model name on a server.
        base_url: URL of an OpenAI-compatible server; None runs the model in this process.
        tokenizer: folder of the server's tokenizer. Suites that build prompts to a length in tokens need it.
        window: maximum sequence length of the server, in tokens.
        yarn: factor by which YaRN extends the window; None keeps the model's window.
        concurrency: concurrent requests to a server.
        patience: seconds to go on asking a server that is away or busy.
        chat_template_kwargs: keyword arguments of the chat template.
        date: date that the chat template prints; None uses the default of :func:`load_tokenizer`.
        extra_body: further fields of requests to a server.
        alive: raises if the server has ended for good.
    """

    model: str
    base_url: str | None = None
    tokenizer: Path | None = None
    window: int | None = None
    yarn: float | None = None
    concurrency: int = 16
    patience: float = 600.0
    chat_template_kwargs: dict[str, Any] | None = None
    date: str | None = None
    extra_body: dict[str, Any] | None = None
    alive: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        local = self.base_url is None
        for option, value in (("tokenizer", self.tokenizer), ("window", self.window)):
            unused = local and value is not None
            require(not unused, f"--{option} {value}: is for a server (--base-url); a folder brings its own")
        require(not (local and self.extra_body), "--extra-body: is for a server (--base-url)")
        if self.yarn is not None:
            given = f"--yarn {self.yarn:g}"
            require(local, f"{given}: a server extends its model itself; start it with YaRN")
            require(self.yarn > 1, f"{given}: must be greater than 1, such as 4 for four times the window")
        require_at_least(1, window=self.window, concurrency=self.concurrency)


class EvaluatedModel:
    """A model under evaluation. The constructor reads its configuration; :meth:`load` loads its weights.

    Attributes:
        day: date that the chat template prints; see :class:`ModelSettings`.
        identity: hash of everything besides the prompts that determines the answers.
        remote: True if a server runs the model.
        client: the server, if one runs the model.
        window: maximum sequence length in tokens; None if unknown.
    """

    def __init__(self, settings: ModelSettings, work: Path) -> None:
        """Find the model and read its configuration. A NeMo checkpoint is exported to ``work`` first.

        Args:
            settings: the model and how to run it.
            work: folder for the exported checkpoint and for a copy of the model with a changed configuration.

        Raises:
            UserError: the model or the server is missing or unusable.
        """
        self._settings, self._work = settings, work
        self.day = settings.date
        self.remote = settings.base_url is not None
        self._lm: Any = None
        if settings.base_url is not None:
            from solopo_nemo.builders.pairs.client import ServerClient

            options: dict[str, Any] = {"concurrency": settings.concurrency, "patience": settings.patience}
            self.client = ServerClient(settings.model, settings.base_url, alive=settings.alive, **options)
            self.window = settings.window
            what: list[Any] = ["server", settings.model]
        else:
            self._folder = self._find(work)
            scaling = {"rope_type": "yarn", "factor": settings.yarn} if settings.yarn else None
            self._config = hf.read_config(self._folder, rope_scaling=scaling, rope_key="--yarn")
            self.window = self._config.window
            files = sorted(file for file in self._folder.iterdir() if file.is_file() and file.name != hf.RECORD)
            what = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            what.append(settings.yarn)
            generation = self._folder / "generation_config.json"
            if generation.is_file() and penalties(read_json(generation)):
                what.append("without penalties")  # earlier versions answered with them
        if settings.chat_template_kwargs:
            what.append(settings.chat_template_kwargs)
        if settings.extra_body:
            what.append({"extra_body": settings.extra_body})
        self.identity = json_hash(what)[:16]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer, loaded at the first access.

        Raises:
            UserError: the tokenizer is missing or does not match the model's vocabulary.
        """
        if not self.remote:
            tokenizer = load_tokenizer(self._folder, day=self.day)
            check_tokenizer(tokenizer, self._config.vocab_size, f"--model {self._folder}")
            return tokenizer
        if self._settings.tokenizer is None:
            raise UserError(
                "--tokenizer: prompts are built to a length in tokens: give the folder of the server's tokenizer"
            )
        return load_tokenizer(self._settings.tokenizer)

    @property
    def chat(self) -> bool:
        """True if prompts are rendered with a chat template."""
        return self.remote or self.tokenizer.chat_template is not None

    @property
    def encoder(self) -> TripletEncoder:
        """The encoder that turns prompts into token ids."""
        return TripletEncoder(self.tokenizer, self._settings.chat_template_kwargs, TEMPLATE_KWARGS)

    def tokens(self, prompt: str) -> int:
        """Length of a prompt in tokens after the chat template is applied."""
        message: Any = [{"role": "user", "content": prompt}] if self.chat else prompt
        return len(self.encoder.encode_prompts([message], ["prompt"])[0])

    def require_window(self, tokens: int, what: str) -> None:
        """Check that a sequence length fits the window.

        Args:
            tokens: sequence length in tokens.
            what: name of the length in the error message.

        Raises:
            UserError: the length exceeds the model's window.
        """
        if self.window is not None and tokens > self.window:
            remedy = "start the server with a longer one" if self.remote else f"--yarn {-(-tokens // self.window)}"
            raise UserError(
                f"{what}: {tokens} tokens are beyond the model's window of {self.window}: leave that length out, "
                f"or extend the window ({remedy})"
            )

    def load(self) -> Any:
        """The model as lm_eval's ``LM``, loaded once."""
        if self._lm is None:
            logging.getLogger("lm_eval").setLevel(logging.ERROR)
            self._lm = self._server() if self.remote else self._local()
        return self._lm

    def prepare(self, seed: int, tokens: int) -> None:
        """Set the sampling seed and the batch size for the requests that follow. It has no effect for a server.

        Args:
            seed: sampling seed.
            tokens: length of the longest prompt in tokens.
        """
        if self.remote:
            return
        import torch

        torch.manual_seed(seed)
        scale = GPU_BATCH if device.cuda() else 1
        self.load().batch_size_per_gpu = max(1, scale * TOKENS_A_BATCH // max(1, tokens))

    def _find(self, work: Path) -> Path:
        path = Path(self._settings.model)
        if not hf.is_checkpoint(path):
            if not path.is_dir():
                raise UserError(
                    f"--model {path}: no such folder; give a Hugging Face folder, a checkpoint, or a server's model "
                    "with --base-url"
                )
            refuse_run_folder(path, f"--model {path}")
            return path
        from solopo_nemo.nemo_model.convert import export_hf

        export_hf(path, work / "hf", overwrite=True)
        return work / "hf"

    def _server(self) -> Any:
        from solopo_nemo.evaluation.lm import ServerModel

        tokens = self.tokens if self._settings.tokenizer else None
        extra = dict(self._settings.extra_body or {})
        if self._settings.chat_template_kwargs:
            extra["chat_template_kwargs"] = self._settings.chat_template_kwargs
        return ServerModel(self.client, extra, tokens)

    def _local(self) -> Any:
        from solopo_nemo.evaluation.lm import LocalModel

        folder = self._folder
        if changes := self._config.changes():
            folder = hf.linked_copy(folder, self._work / "model", changes)
        return LocalModel(
            self.chat,
            pretrained=str(folder),
            tokenizer=self.tokenizer,
            device=device.current().type,
            parallelize=device.count() > 1,
            max_length=self.window,
            chat_template_args=self.encoder.template.switches,
        )
