"""Study of collapse: when and why the short-to-long alignment degrades short contexts, and which form is safe."""
