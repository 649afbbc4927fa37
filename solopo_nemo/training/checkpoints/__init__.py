"""Checkpoints of a run: files, saving, resuming, and selection of the exported one."""
