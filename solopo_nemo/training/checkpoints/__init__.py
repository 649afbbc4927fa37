"""Checkpoints of a run: their files, saving, resuming, and which one becomes the policy."""
