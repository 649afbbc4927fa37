"""Sampling with a local Hugging Face model."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from solopo_nemo.builders.pairs.backend import Cost, Refused, Request, Sample, Sampling
from solopo_nemo.data.tokenize import TripletEncoder
from solopo_nemo.data.tokenizer_files import load_tokenizer
from solopo_nemo.data.vocabulary import check_tokenizer, require_token
from solopo_nemo.families.hf import transformers_config
from solopo_nemo.runtime.cli import TEMPLATE_KWARGS
from solopo_nemo.runtime.device import current
from solopo_nemo.runtime.errors import UserError


class HuggingFaceBackend:
    """Generates with `transformers`, one prompt at a time, with the answers of a prompt in batches.

    Each batch has its own seed, so the answers to a prompt do not depend on other prompts.
    """

    concurrency = 1
    cut_prompts = 0

    def __init__(self, sampling: Sampling, device: str | None = None) -> None:
        """Load the model.

        Args:
            sampling: Sampling settings; `model` is a local folder.
            device: torch device; None selects a GPU if there is one.

        Raises:
            UserError: The model cannot be loaded, or the device does not exist.
        """
        self.cost = Cost()
        folder = Path(sampling.model)
        self._sampling = sampling
        self._tokenizer = load_tokenizer(folder, day=sampling.date)
        self._encoder = TripletEncoder(self._tokenizer, sampling.chat_template_kwargs, TEMPLATE_KWARGS)
        try:
            config = transformers_config(folder)
            model: Any = AutoModelForCausalLM.from_pretrained(
                str(folder), config=config, dtype="auto", local_files_only=True
            )
            self._model = model.to(device or current().type).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"--model {folder}: cannot be loaded ({' '.join(str(error).split())})") from error
        ends = self._model.generation_config.eos_token_id
        ends = {*(ends if isinstance(ends, list) else [ends]), self._tokenizer.eos_token_id} - {None}
        if not ends:
            raise UserError(
                f"--model {folder}: no eos_token_id in generation_config.json or the tokenizer: answers never end"
            )
        self._ends = sorted(ends)
        check_tokenizer(self._tokenizer, self._model.config.vocab_size, f"--model {folder}")
        self._prefilled: tuple[torch.Tensor, DynamicCache] | None = None

    def fingerprint(self, earlier: str | None) -> str | None:
        """See `Backend`."""
        return None

    def sample(self, request: Request, have: int) -> list[Sample]:
        """See `Backend`."""
        ids = self._encoder.encode_prompts([request.prompt], [request.id])[0]
        require_token(max(ids), self._tokenizer, self._model.config.vocab_size, request.id)
        limit = getattr(self._model.config, "max_position_embeddings", None)
        if limit and len(ids) + self._sampling.max_new_tokens > limit:
            raise Refused(f"{len(ids)} tokens and {self._sampling.max_new_tokens} new ones exceed the model's {limit}")
        count = self._sampling.next_batch(request.side, have)
        torch.manual_seed(self._sampling.seed_of(request, have))
        try:
            return self._generate(torch.tensor([ids], device=self._model.device), count)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"{count} answers to a prompt of {len(ids)} tokens do not fit on {self._model.device}: "
                f"give a smaller --batch than {count}, and another --out"
            ) from error

    def close(self) -> None:
        """See `Backend`."""

    @torch.inference_mode()
    def _generate(self, prompt: torch.Tensor, count: int) -> list[Sample]:
        prompts = prompt.expand(count, -1)
        out = self._model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            past_key_values=self._prefix(prompt, count),
            max_new_tokens=self._sampling.max_new_tokens,
            do_sample=True,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            # override the model's generation defaults, which would sharpen the distribution
            top_k=self._sampling.top_k or 0,
            repetition_penalty=1.0,
            eos_token_id=self._ends,
            pad_token_id=self._ends[0] if self._tokenizer.pad_token_id is None else self._tokenizer.pad_token_id,
        )
        new = out[:, prompts.shape[1] :].tolist()
        ends = (next((place + 1 for place, token in enumerate(ids) if token in self._ends), len(ids)) for ids in new)
        self.cost.add(prompt.shape[1], sum(ends))
        texts = self._tokenizer.batch_decode(new, skip_special_tokens=True)
        cuts = [set(self._ends).isdisjoint(ids) for ids in new]
        return [Sample(text.strip(), cut, "length" if cut else "") for text, cut in zip(texts, cuts, strict=True)]

    def _prefix(self, prompt: torch.Tensor, count: int) -> DynamicCache:
        """Run the prompt without its last token once, and return its KV cache repeated `count` times.

        Without the cache, `generate` would run the whole prompt `count` times.

        Args:
            prompt: Token ids, int64 `[1, tokens]`.
            count: Number of answers.
        """
        if self._prefilled is None or not torch.equal(self._prefilled[0], prompt):
            cache = DynamicCache(config=self._model.config)
            if prompt.shape[1] > 1:
                self._model(prompt[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            # kept, because the next batch often has the same prompt
            self._prefilled = prompt, cache
        cache = deepcopy(self._prefilled[1])
        cache.batch_repeat_interleave(count)
        return cache
