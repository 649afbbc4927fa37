"""When the short-to-long alignment ruins the short side, why, and which form is safe: theory, map and page."""
