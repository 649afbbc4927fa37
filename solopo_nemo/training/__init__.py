"""A run: configuration, preparation, ranks, callbacks, report."""

import solopo_nemo.nemo_model  # noqa: F401  # before NeMo, which then imports with any Megatron-core
