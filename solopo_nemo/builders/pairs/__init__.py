"""Preference pairs from sampled answers: sampling, scoring, selection, and conversion of other file formats."""
