"""Failures that end a run: faults of ranks, hangs and lack of memory, with their one-line messages."""
