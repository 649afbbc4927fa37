"""The models behind lm_eval's interface: one on a server, and one in this process."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM

from solopo_nemo.builders.pairs.backend import REFUSALS_TO_GIVE_UP, Refused
from solopo_nemo.builders.pairs.client import ServerClient
from solopo_nemo.builders.pairs.server import is_cut
from solopo_nemo.evaluation.answers import LENGTH, Answer
from solopo_nemo.evaluation.models import NO_PENALTIES, penalties
from solopo_nemo.runtime.errors import UserError

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

logger = logging.getLogger("solopo_nemo")


class ServerModel(LM):
    """A model on a server.

    Args:
        client: the server.
        extra: further fields of each request.
        tokens: counts the tokens of a prompt; None: the prompts' lengths are not compared with what the server reads.
    """

    tokenizer_name = ""

    def __init__(
        self,
        client: ServerClient,
        extra: dict[str, Any],
        tokens: Callable[[str], int] | None,
    ) -> None:
        super().__init__()
        self._client, self._extra, self._tokens = client, extra, tokens
        self.cut_prompts = 0

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Generate one text for each request. A prompt that the server refuses has an empty answer with a reason."""
        answers: list[str] = [""] * len(requests)
        pool, good, lost = ThreadPoolExecutor(self._client.concurrency), 0, 0
        try:
            pending = {pool.submit(self._answer, *request.args): number for number, request in enumerate(requests)}
            for future in as_completed(pending):
                number = pending[future]
                answers[number] = answer = future.result()
                refused = answer.reason if answer.reason not in ("", LENGTH) else ""
                good, lost = good + (not refused), lost + bool(refused)
                if lost >= REFUSALS_TO_GIVE_UP and not good:
                    raise UserError(f"the first {lost} prompts are all refused: {refused}")
                self.cache_hook.add_partial("generate_until", requests[number].args, answers[number])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return answers

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The messages as JSON; the server applies its template."""
        return json.dumps(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Empty: the server has the template."""
        return ""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Refused: chat servers return no log-probabilities of given texts.

        Raises:
            UserError: always; a suite that needs them says so before it starts.
        """
        raise UserError(
            "--base-url: a chat server returns no log-probabilities of given texts: evaluate the model folder"
        )

    loglikelihood_rolling = loglikelihood

    def _answer(self, context: str, generation: dict[str, Any]) -> Answer:
        messages = json.loads(context)
        options = {name: generation[name] for name in ("seed",) if name in generation}
        # vLLM and SGLang take penalties from generation_config.json; greedy means greedy
        extra = {"repetition_penalty": 1.0, **self._extra}
        temperature = generation.get("temperature", 0.0)
        try:
            reply = self._client.ask(
                messages, generation["max_gen_toks"], temperature=temperature, extra_body=extra, **options
            )
        except Refused as error:
            return Answer("", str(error))
        tokens = self._tokens(messages[-1]["content"]) if self._tokens and reply.prompt_tokens else None
        self.cut_prompts += is_cut(reply.prompt_tokens, tokens, self._client.url, self.cut_prompts)
        sample = reply.samples[0]
        return Answer(sample.text, sample.reason)


class LocalModel(HFLM):
    """A model in this process: greedy decoding without penalties, and prompts with the special tokens of training.

    Args:
        chat: True if a chat template renders the prompts; it then writes the special tokens itself.
        settings: as for ``HFLM``.
    """

    def __init__(self, chat: bool, **settings: Any) -> None:
        super().__init__(add_bos_token=not chat, **settings)
        self._unfinished: deque[bool] = deque()
        config = self.model.generation_config
        off = penalties(config.to_dict())
        for name in off:
            setattr(config, name, NO_PENALTIES[name])
        if off:
            said = ", ".join(f"{name} {value!r}" for name, value in off.items())
            logger.warning("generation_config.json: %s: off in the evaluation", said)

    def next_reason(self) -> str:
        """Why the next generated answer is not whole; call it once for each, in the order of generation."""
        return LENGTH if self._unfinished and self._unfinished.popleft() else ""

    def _model_generate(self, context: Any, max_length: int, stop: list[str], **settings: Any) -> Any:
        out = super()._model_generate(context, max_length, stop, **settings)
        ends = self.model.generation_config.eos_token_id
        known = {*(ends if isinstance(ends, Sequence) else [ends]), self.tokenizer.eos_token_id}
        self._unfinished.extend(known.isdisjoint(row) for row in out[:, context.shape[1] :].tolist())
        return out
