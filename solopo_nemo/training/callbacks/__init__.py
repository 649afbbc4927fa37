"""What runs with the training steps: metrics, progress, reference scores, scoring of checkpoints."""
