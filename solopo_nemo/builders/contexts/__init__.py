"""Construction of short and long contexts from question answering data with RULER's method."""
