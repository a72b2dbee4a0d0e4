"""Research: recipes become trained networks. Needs torch, pandas and scikit-learn; the runtime never imports it."""
