"""The sections of a run's configuration. Their docstrings are the one text of each key.

``.ci/yaml_comments.py`` writes these texts, with the allowed values, into the comments of ``conf/*.yaml``. ``--help``
and the configuration page print those comments. Defaults are in ``conf/`` only; a default here is for a key that the
configuration of earlier runs does not have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from solopo_nemo.embedded import SHORT_PARAGRAPHS
from solopo_nemo.runtime import kernels
from solopo_nemo.runtime.options import choice, number, path


@dataclass(kw_only=True)
class ModelConfig:
    """The weights that a run starts from, and how the model is computed.

    Attributes:
        init: "builtin", a Hugging Face folder, a Hugging Face hub name, or a NeMo checkpoint.
        rope_scaling: replaces the model's own, to extend its window, as in {type: yarn, factor: 4.0}.
        trust_checkpoint: load a NeMo checkpoint that this project did not write; loading runs the code that its files
            name.
        recompute: what the backward pass computes again: nothing, core attention (on a GPU the MLP), or whole layers.
        logits_chunk_size: response positions that the LM head scores at a time; it bounds the memory of the logits.
        layers: the layers that compute; auto takes Transformer Engine if it supports the run, else torch.
        adapter: folder of a LoRA adapter in peft's format, which training continues; needs peft=lora.
        moe_aux_loss: weight of the experts' load-balancing loss; 0 switches it off; null takes router_aux_loss_coef of
            the model's config.json.
        moe_z_loss: weight of the z-loss of the experts' router.
    """

    init: str = path()
    rope_scaling: dict[str, Any] | None
    trust_checkpoint: bool
    recompute: str = choice(allowed=("none", "selective", "full"))
    logits_chunk_size: int = number(minimum=1)
    layers: str = choice(allowed=kernels.LAYERS, default="auto")
    adapter: str | None = path(None)
    moe_aux_loss: float | None = number(None, minimum=0, optional=True)
    moe_z_loss: float = number(0.0, minimum=0)


@dataclass(kw_only=True)
class BuiltinDataConfig:
    """Size of the built-in question set.

    Attributes:
        samples: questions, at most 1220.
        long_paragraphs: paragraphs of a long context; 64 are about 690 tokens. A short context has 8.
    """

    samples: int = number(minimum=1)
    long_paragraphs: int = number(minimum=SHORT_PARAGRAPHS)


@dataclass(kw_only=True)
class DataConfig:
    """Training samples.

    Attributes:
        train: "builtin", or a triplet file or folder (.jsonl, .jsonl.gz, .parquet, a saved datasets folder).
        max_tokens: largest number of tokens of a prompt with its response, such as 8192 or 8K; null is the model's
            window.
        too_long: what happens to a longer sample; data/tokenized/dropped.jsonl lists the dropped ones.
        chat_template_kwargs: values for the switches of the chat template, as in {enable_thinking: false}.
        score: the assistant turns that are scored in a response of several messages; last is only the last turn.
        template_mismatch: what happens where the chat template rewrites earlier turns of a response.
    """

    train: str = path()
    max_tokens: int | None = number(minimum=2, optional=True)
    too_long: str = choice(allowed=("error", "drop"))
    chat_template_kwargs: dict[str, Any] | None = None
    score: str = choice("assistant", allowed=("assistant", "last"))
    template_mismatch: str = choice("error", allowed=("error", "warn"))
    builtin: BuiltinDataConfig


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW and its learning-rate schedule.

    Attributes:
        lr: highest learning rate, after the warm-up.
        min_lr: learning rate at the end of the cosine.
        warmup_ratio: share of the steps in which the learning rate rises.
        weight_decay: AdamW's decoupled weight decay.
        beta1: decay of AdamW's mean of the gradients.
        beta2: decay of AdamW's mean of the squared gradients.
        eps: added to AdamW's denominator.
        clip_grad: largest L2 norm of a step's gradient; 0 switches clipping off.
    """

    lr: float = number(above=0)
    min_lr: float = number(minimum=0)
    warmup_ratio: float = number(minimum=0, below=1)
    weight_decay: float = number(minimum=0)
    beta1: float = number(minimum=0, below=1)
    beta2: float = number(minimum=0, below=1)
    eps: float = number(above=0)
    clip_grad: float = number(minimum=0)


@dataclass(kw_only=True)
class TrainerConfig:
    """Length of the run, batches, precision and checkpoints.

    Attributes:
        max_steps: optimizer steps; null takes as many as the epochs need.
        epochs: passes over the data, where max_steps is null.
        global_batch: samples of an optimizer step.
        micro_batch: samples of a forward pass, on each data-parallel rank.
        seed: seed of the order of the samples and of all random numbers.
        precision: type of the weights and activations; null takes bf16 on a GPU and fp32 on a CPU.
        checkpoint_every: optimizer steps between two checkpoints; the last step is always saved.
        keep_checkpoints: number of the newest checkpoints that are kept.
        select_best: a suite of tools/evaluate.py (the paper takes longbench_qa), whose best checkpoint is exported to
            hf/; null exports the last.
        resume: auto takes the newest checkpoint, never starts anew, and a path names a checkpoint.
        nonfinite: what happens when a loss or a gradient is NaN or infinite; no weight changes in that step.
        timeout_minutes: limit for one step, its checkpoint included; a longer step ends the job with one line that
            names the rank.
    """

    max_steps: int | None = number(minimum=1, optional=True)
    epochs: int = number(minimum=1)
    global_batch: int = number(minimum=1)
    micro_batch: int = number(minimum=1)
    seed: int = number(minimum=1)
    precision: str | None = choice(allowed=("fp32", "bf16"), optional=True)
    checkpoint_every: int = number(minimum=1)
    keep_checkpoints: int = number(minimum=1)
    select_best: str | None
    resume: str = path()
    nonfinite: str = choice(allowed=("stop", "skip"))
    timeout_minutes: float = number(above=0)


@dataclass(kw_only=True)
class LoggerConfig:
    """Lightning loggers beside metrics.jsonl.

    Attributes:
        tensorboard: write event files to output_dir/logs/tensorboard.
        wandb: project of Weights & Biases; offline unless WANDB_MODE says otherwise.
        mlflow: experiment of MLflow at MLFLOW_TRACKING_URI, by default in output_dir/logs/mlflow.
        trackio: project of Trackio in TRACKIO_DIR, by default in output_dir/logs/trackio.
        swanlab: project of SwanLab; offline unless SWANLAB_MODE says otherwise.
    """

    tensorboard: bool
    wandb: str | None
    mlflow: str | None = None
    trackio: str | None = None
    swanlab: str | None = None


@dataclass(kw_only=True)
class HubConfig:
    """Upload of the exported policy.

    Attributes:
        push: user/name of the repository that the exported policy is uploaded to; the environment variable HF_TOKEN
            holds the token.
        private: whether a repository that the upload creates is private.
    """

    push: str | None = None
    private: bool = True


@dataclass(kw_only=True)
class EvaluationConfig:
    """Answer accuracy on the built-in questions, before and after the run.

    Attributes:
        name: auto evaluates only the embedded model, builtin every model.
        lengths: context lengths, as multiples of the short context (8 paragraphs).
        questions: number of questions at each length.
        data: folder of the data of the suite that trainer.select_best names.
        limit: questions in each cell of that suite; null takes the suite's own number.
        seed: seed of the questions, which share no fact with the training questions.
    """

    name: str = choice(allowed=("auto", "builtin", "none"))
    lengths: list[int]
    questions: int = number(minimum=1)
    data: str = path()
    limit: int | None = number(minimum=1, optional=True)
    seed: int


@dataclass(kw_only=True)
class DryRunConfig:
    """What ``dry_run=true`` traces; see :mod:`solopo_nemo.training.dry_run`.

    Attributes:
        enabled: dry_run=true sets it: trace one optimizer step at full size with fake tensors, and train nothing.
        device: the device whose code is traced.
        gpus: number of ranks; null takes the fewest that parallel.* allows.
        memory: GiB of each device; null takes 80 on cuda and this machine's share on cpu.
        length: tokens of the long prompt, such as 131072 or 128K; null takes the longest sample of the data.
    """

    enabled: bool = False
    device: str = choice("cuda", allowed=("cuda", "cpu"))
    gpus: int | None = number(None, minimum=1, optional=True)
    memory: float | None = number(None, above=0, optional=True)
    length: str | None = None
