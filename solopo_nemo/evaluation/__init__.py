"""What a trained policy answers: accuracy by context length."""
