"""Model families: what a Hugging Face folder says about its model, and the names of its weights. No Megatron."""
