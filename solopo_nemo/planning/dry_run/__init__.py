"""A dry run: an optimizer step at full size with fake tensors, in a process group that is not there.

Example: ``python recipes/solo_dpo.py model=qwen2_5_72b parallel.tensor=8 ... dry_run=true`` tells on a laptop what each
of 64 GPUs would hold, compute and send.

The run's own code runs: its model, packing, schedule, gradient reduction and optimizer. torch's ``FakeTensorMode``
gives tensors without memory, and its ``fake`` process group ranks without processes. :mod:`.tracker` sees every
operation, :mod:`.rank` traces one rank, :mod:`.report` the ranks that differ. Importing this package imports neither
torch nor NeMo.
"""
