"""Benchmarks: training steps of this project and of TRL (the peer) in new processes, and figures of the results."""
