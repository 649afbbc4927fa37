"""Preference pairs from sampled answers: sampling, scoring, choosing, and files of other projects."""
