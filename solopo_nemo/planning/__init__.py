"""The planner: predicts FLOPs, memory and step time of a run from the model's shape and a layout, without Megatron."""

from solopo_nemo.planning.advice import advise
from solopo_nemo.planning.communication import Communication, communication
from solopo_nemo.planning.flops import Flops, forward_flops, hardware_flops, model_flops
from solopo_nemo.planning.layout import Layout
from solopo_nemo.planning.memory import Memory, memory
from solopo_nemo.planning.run import CPU, GPU, Run
from solopo_nemo.planning.search import Plan, longest, search
from solopo_nemo.planning.shape import ModelShape, load_shape
from solopo_nemo.planning.step_time import Machine, StepTime, step_time
from solopo_nemo.planning.traced import is_known
from solopo_nemo.planning.workload import Lengths, Sequence, Workload

__all__ = [
    "CPU",
    "GPU",
    "Communication",
    "Flops",
    "Layout",
    "Lengths",
    "Machine",
    "Memory",
    "ModelShape",
    "Plan",
    "Run",
    "Sequence",
    "StepTime",
    "Workload",
    "advise",
    "communication",
    "forward_flops",
    "hardware_flops",
    "is_known",
    "load_shape",
    "longest",
    "memory",
    "model_flops",
    "search",
    "step_time",
]
