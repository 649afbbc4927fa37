"""Training data: read and validate preference triplets, tokenize them, and pack them into micro-batches."""
