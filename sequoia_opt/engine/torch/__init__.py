"""The engine that runs transformers models on torch."""
