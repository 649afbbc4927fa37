"""Data builders: contexts from questions, and preference pairs (the triplet files of training) from contexts."""
