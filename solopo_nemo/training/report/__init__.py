"""The report of a run: reads metrics.jsonl, draws its figures, writes one static page."""
