"""NeMo models: the mixin, the families, the strategy, and conversion from and to Hugging Face."""
