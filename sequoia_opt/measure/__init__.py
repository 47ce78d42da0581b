"""A pair of models and a machine in, numbers out."""
