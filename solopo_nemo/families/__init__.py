"""Model families: one record each, what a Hugging Face folder says about its model, and its weights. No Megatron."""
