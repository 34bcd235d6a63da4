"""HTML result pages, plots and the research-only notice."""
