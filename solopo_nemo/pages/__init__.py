"""Reports: the figure theme, figure and table helpers, and the template renderer."""
