"""Transformer layers in plain torch, under the parameter names of Transformer Engine's layers."""
