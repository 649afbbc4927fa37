"""The report of a run: reads ``metrics.jsonl``, draws the figures and writes one static page."""
