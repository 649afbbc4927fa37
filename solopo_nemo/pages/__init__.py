"""Pages and figures: one theme, one helper for figures, one for tables, one renderer of templates."""
