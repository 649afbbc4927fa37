"""The configuration of a run: its schema, its composition from YAML, and the checks before any work."""
