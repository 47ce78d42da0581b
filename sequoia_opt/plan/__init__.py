"""Numbers in, tree out: trees, acceptance, latency and the solver. Never imports torch."""
