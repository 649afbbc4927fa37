"""What ends a run early: faults of ranks, hangs, lack of memory, and their one-line messages."""
