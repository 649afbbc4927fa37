"""A run: checks, preparation, ranks, callbacks, checkpoints, failures, report."""

import solopo_nemo.nemo_model  # noqa: F401  # before NeMo, which it makes importable with Megatron-core 0.16
