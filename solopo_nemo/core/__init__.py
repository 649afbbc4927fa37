"""The algorithm on Megatron-core alone: the training step, the response-only head, scoring and the layers. No NeMo."""
