"""Builders: questions to contexts, contexts to sampled preference pairs, and the triplet files that training reads."""
