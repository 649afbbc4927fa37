"""Lightning callbacks of the training steps: metrics, progress, reference scores, scoring of checkpoints."""
