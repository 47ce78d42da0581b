"""Tuning of an engine in the engine: few runs, a prediction for each setting, and a race."""
