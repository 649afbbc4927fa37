"""Time and peak memory of training steps with TRL's DPOTrainer. Runs in the environment of the peer.

``tools/benchmark.py`` calls it as ``python trl_dpo.py REQUEST.json RESULT.json`` in a new process. It does not import
``solopo_nemo``; the request contains all settings (``_Request``). The peak is defined in
``studies/benchmarks/memory.py``. Before the first step there are no gradients, but there may be a reference model.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TQDM_DISABLE": "1"}

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer import utils as trl_utils

sys.path.append(str(Path(__file__).resolve().parents[1]))  # for memory.py, which needs torch only
from memory import PeakMemory

CUDA = torch.cuda.is_available()


def _finish_queued() -> None:
    if CUDA:
        torch.cuda.synchronize()


@dataclass(frozen=True)
class _Request:
    """One measurement.

    Attributes:
        model: Hugging Face folder with weights and tokenizer.
        data: JSON file with the token ids ``prompt_long``, ``chosen``, ``rejected``.
        setting: ``as_is``; or ``best``, which scores the reference before training and response positions only.
        lora: None, or rank and alpha of adapters on all linear layers.
        adapters_off: with ``best``: score the reference policy in each step, by the model with its adapters off.
        steps: optimizer steps, all on the same sample.
        recompute: ``none`` or ``full`` (gradient checkpointing).
        lr, beta1, beta2, eps, weight_decay, clip_grad: settings of AdamW with a constant schedule.
        beta: beta of DPO.
        output_dir: scratch folder.
    """

    model: str
    data: str
    setting: str
    lora: dict[str, int] | None
    adapters_off: bool
    steps: int
    recompute: str
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_grad: float
    beta: float
    output_dir: str


class _Meter(TrainerCallback):
    """Measures the time of each step and the peak over all steps."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.memory, self.peak = PeakMemory(), 0
        self.trainer: Any = None

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not self.seconds:
            reference = [] if self.trainer.ref_model is None else list(self.trainer.ref_model.parameters())
            self.memory.start([*self.trainer.model.parameters(), *reference], reference)
        _finish_queued()
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        _finish_queued()
        self.seconds.append(time.perf_counter() - self._started)
        self.peak = self.memory.peak()


class _Trainer(DPOTrainer):
    """TRL's trainer for given token ids. It records losses and log-probabilities."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.losses: list[float] = []
        self.logps: list[dict[str, float]] = []
        self.digest: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def compute_loss(self, model: Any, inputs: Any, **kwargs: Any) -> Any:
        if not self.digest:
            self.digest = _digest(inputs)
        loss = super().compute_loss(model, inputs, **kwargs)
        self.losses.append(float(loss.detach()))
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        super().log(logs, *args, **kwargs)
        if "logps/chosen" in logs:
            self.logps.append({key: logs[key] for key in ("logps/chosen", "logps/rejected")})


def _digest(inputs: Any) -> dict[str, str]:
    """Field of the data file -> hash of its token ids in a collated batch."""
    (chosen, rejected), (chosen_mask, rejected_mask) = inputs["input_ids"], inputs["completion_mask"].bool()
    parts = {"prompt_long": chosen[~chosen_mask], "chosen": chosen[chosen_mask], "rejected": rejected[rejected_mask]}
    assert torch.equal(parts["prompt_long"], rejected[~rejected_mask])
    assert bool(inputs["attention_mask"].all())
    return {name: hashlib.sha256(ids.numpy().tobytes()).hexdigest() for name, ids in parts.items()}


def _score_response_rows_only() -> list[int]:
    """Make TRL's head select the valid rows first, as on CUDA. Return a list that collects its row counts."""
    rows: list[int] = []
    if not CUDA:
        trl_utils._use_triton = lambda device: True  # the kernel checks its own module, so it still uses torch
    function = trl_utils._ChunkedLogProbFunction

    class Noting(function):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx: Any, hidden: torch.Tensor, *args: Any) -> Any:
            rows.append(hidden.shape[0])
            return function.forward(ctx, hidden, *args)

    trl_utils._ChunkedLogProbFunction = Noting
    return rows


def _adapters(request: _Request) -> LoraConfig | None:
    if request.lora is None:
        return None
    rank, alpha = request.lora["rank"], request.lora["alpha"]
    return LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")


def _measure(request: _Request) -> dict[str, Any]:
    rows = _score_response_rows_only() if request.setting == "best" else []
    ids = json.loads(Path(request.data).read_text())
    sample = {"prompt_ids": ids["prompt_long"], "chosen_ids": ids["chosen"], "rejected_ids": ids["rejected"]}
    meter = _Meter()
    trainer = _Trainer(
        model=request.model,
        processing_class=AutoTokenizer.from_pretrained(request.model),
        train_dataset=Dataset.from_list([sample]),
        args=DPOConfig(
            output_dir=request.output_dir,
            model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
            max_length=None,
            beta=request.beta,
            precompute_ref_log_probs=request.setting == "best" and not request.adapters_off,
            per_device_train_batch_size=1,
            max_steps=request.steps,
            learning_rate=request.lr,
            lr_scheduler_type="constant",
            adam_beta1=request.beta1,
            adam_beta2=request.beta2,
            adam_epsilon=request.eps,
            weight_decay=request.weight_decay,
            max_grad_norm=request.clip_grad,
            gradient_checkpointing=request.recompute == "full",
            bf16=CUDA,
            use_cpu=not CUDA,
            dataloader_pin_memory=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        callbacks=[meter],
        peft_config=_adapters(request),
    )
    meter.trainer = trainer
    trainer.train()
    response = len(ids["chosen"]) + len(ids["rejected"])
    if request.setting == "best" and set(rows) != {response}:
        raise RuntimeError(f"TRL's head scored {rows} rows instead of the {response} response rows")
    return {
        "seconds": meter.seconds,
        "peak_bytes": [meter.peak],
        "baseline_bytes": [meter.memory.baseline],
        "losses": trainer.losses,
        "logps": trainer.logps,
        "digest": trainer.digest,
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "trl": trl.__version__,
            "python": sys.version.split()[0],
        },
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    result = _measure(_Request(**json.loads(Path(sys.argv[1]).read_text())))
    Path(sys.argv[2]).write_text(json.dumps(result))
