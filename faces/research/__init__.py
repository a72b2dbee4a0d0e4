"""Research: training, experiments and results as tables. Needs torch and pandas; the runtime never imports it."""
