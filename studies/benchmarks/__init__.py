"""Measuring: training steps in fresh processes, the peer beside them, and the figures made of the results."""
