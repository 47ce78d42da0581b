"""A tree in, tokens out: loads models, runs them on trees, verifies losslessly."""
