"""Evaluation of a trained policy: benchmark suites, scores with intervals, and reports."""
