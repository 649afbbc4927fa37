"""What is evaluated: a Hugging Face folder, a checkpoint of ours, or an OpenAI-compatible server."""

from __future__ import annotations

import hashlib
import json
import logging
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
from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_A_BATCH = 8192
"""Prompt tokens that a CPU works on at once; on GPUs a multiple of it."""
GPU_BATCH = 8
TRIES = 60
"""Of a request to a server that is away or busy, with waits that grow to ten seconds."""


@dataclass(frozen=True)
class ModelSettings:
    """Which model, and how it is run.

    Attributes:
        model: Hugging Face folder, NeMo checkpoint, or the name that a server gives the model.
        base_url: of an OpenAI-compatible server; None runs the model here.
        tokenizer: folder of a server's tokenizer, which prompts of a length in tokens need.
        window: longest sequence a server takes, in tokens.
        yarn: factor by which YaRN extends the window; None leaves the model's own.
        concurrency: prompts a server is asked at once.
        chat_template_kwargs: switches of the chat template.
    """

    model: str
    base_url: str | None = None
    tokenizer: Path | None = None
    window: int | None = None
    yarn: float | None = None
    concurrency: int = 16
    chat_template_kwargs: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        for option, value in (("tokenizer", self.tokenizer), ("window", self.window)):
            if value is not None and self.base_url is None:
                raise UserError(f"--{option} {value}: is for a server (--base-url); a folder brings its own")
        if self.base_url is not None and self.yarn is not None:
            raise UserError(f"--yarn {self.yarn:g}: a server extends its model itself; start it with YaRN")
        if self.yarn is not None and self.yarn <= 1:
            raise UserError(f"--yarn {self.yarn:g}: must be greater than 1, such as 4 for four times the window")
        if self.window is not None and self.window < 1:
            raise UserError(f"--window {self.window}: must be at least 1")
        if self.concurrency < 1:
            raise UserError(f"--concurrency {self.concurrency}: must be at least 1")


class EvaluatedModel:
    """A model whose tokenizer and window are known at once, and whose weights are loaded when they are needed.

    Attributes:
        day: what a chat template that writes the date writes; None takes what :func:`load_tokenizer` does.
        identity: changes with everything that its answers depend on, but the prompts.
        remote: a server runs it.
        window: longest sequence in tokens; None where nobody said.
    """

    def __init__(self, settings: ModelSettings, work: Path) -> None:
        """Check that the model is there.

        Args:
            settings: which one.
            work: folder for the export of a checkpoint, and for a copy with another configuration.

        Raises:
            UserError: no such model, or it cannot be used.
        """
        self._settings, self._work = settings, work
        self.day: str | None = None
        self.remote = settings.base_url is not None
        self._lm: Any = None
        if self.remote:
            self._check_server()
            self.window = settings.window
            what: list[Any] = [settings.base_url, settings.model]
        else:
            self._folder = self._find(work)
            scaling = {"rope_type": "yarn", "factor": settings.yarn} if settings.yarn else None
            self._config = hf.read_config(self._folder, rope_scaling=scaling, rope_key="--yarn")
            self.window = self._config.window
            files = sorted(file for file in self._folder.iterdir() if file.is_file() and file.name != hf.RECORD)
            what = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
            what.append(settings.yarn)
        if settings.chat_template_kwargs:
            what.append(settings.chat_template_kwargs)
        self.identity = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer.

        Raises:
            UserError: there is none.
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
        """Whether prompts go through a chat template."""
        return self.remote or self.tokenizer.chat_template is not None

    @property
    def encoder(self) -> TripletEncoder:
        """What makes token ids of prompts."""
        return TripletEncoder(self.tokenizer, self._settings.chat_template_kwargs, TEMPLATE_KWARGS)

    def tokens(self, prompt: str) -> int:
        """Length of a prompt as the model sees it, in tokens."""
        message: Any = [{"role": "user", "content": prompt}] if self.chat else prompt
        return len(self.encoder.encode_prompts([message], ["prompt"])[0])

    def require_window(self, tokens: int, what: str) -> None:
        """Check that a length fits.

        Raises:
            UserError: it is beyond the model's window.
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
        """Set what the requests that follow depend on.

        Args:
            seed: of sampling, for a model that runs here.
            tokens: the longest prompt.
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
            return path
        from solopo_nemo.nemo_model.convert import export_hf

        export_hf(path, work / "hf", overwrite=True)
        return work / "hf"

    def _check_server(self) -> None:
        from solopo_nemo.builders.pairs.backend import Sampling
        from solopo_nemo.builders.pairs.server import ServerBackend

        assert self._settings.base_url is not None
        ServerBackend(Sampling("openai", self._settings.model), self._settings.base_url).close()

    def _server(self) -> Any:
        from lm_eval.models.openai_completions import LocalChatCompletion

        # requests under way when one fails for good each leave a traceback
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        assert self._settings.base_url is not None
        switches = self._settings.chat_template_kwargs

        class Server(LocalChatCompletion):
            """Sends the switches of the chat template with every prompt."""

            def _create_payload(self, *given: Any, **options: Any) -> dict[str, Any]:
                payload: dict[str, Any] = super()._create_payload(*given, **options)
                return payload | ({"chat_template_kwargs": switches} if switches else {})

        return Server(
            model=self._settings.model,
            base_url=f"{self._settings.base_url.rstrip('/')}/chat/completions",
            num_concurrent=self._settings.concurrency,
            max_retries=TRIES,
            timeout=3600,
            max_length=self.window or 2**31,
        )

    def _local(self) -> Any:
        from lm_eval.models.huggingface import HFLM

        folder = self._folder
        if changes := self._config.changes():
            folder = hf.linked_copy(folder, self._work / "model", changes)
        return HFLM(
            pretrained=str(folder),
            tokenizer=self.tokenizer,
            device=device.current().type,
            parallelize=device.count() > 1,
            max_length=self.window,
            chat_template_args=self.encoder.template.switches,
        )
