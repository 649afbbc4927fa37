"""Model families: their records, and readers for the configuration and weights of a Hugging Face folder."""
