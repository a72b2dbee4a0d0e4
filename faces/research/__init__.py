"""Research: training, experiments and results as tables; never imported by the runtime."""
