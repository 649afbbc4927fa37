"""A context window that grows in rounds: contexts, pairs, training and evaluation at one length after the other."""
