"""Short and long contexts from question answering data, by RULER's method."""
