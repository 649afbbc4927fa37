"""A run: configuration, preparation, ranks, callbacks, report."""
