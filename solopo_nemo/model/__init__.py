"""Megatron and NeMo: the mixin, the response-only head, attention, devices, conversion."""
