"""What one GPU shows in some minutes: the layers beside fp64, then seconds and memory of training steps.

It needs torch, Megatron-core and this checkout, and no NeMo. Each row is a process of its own, so that one that runs
out of memory, or crashes, costs its row alone.
"""
