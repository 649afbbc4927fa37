"""Data: reading preference triplets, tokenizing them, and building short and long contexts."""
