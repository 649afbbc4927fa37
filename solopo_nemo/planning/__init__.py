"""Predictions: operations, memory and time of a run, from a model's shape and a layout; arithmetic, no Megatron."""

from solopo_nemo.planning.flops import Flops, forward_flops, hardware_flops, model_flops
from solopo_nemo.planning.shape import ModelShape, load_shape
from solopo_nemo.planning.workload import Lengths, Sequence, Workload

__all__ = [
    "Flops",
    "Lengths",
    "ModelShape",
    "Sequence",
    "Workload",
    "forward_flops",
    "hardware_flops",
    "load_shape",
    "model_flops",
]
