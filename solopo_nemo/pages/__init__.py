"""Pages and figures: one theme for every chart, one place for every template."""
