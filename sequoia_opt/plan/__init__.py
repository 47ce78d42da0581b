"""Numbers in, plan out: trees, acceptance, latencies and the solver. Never imports torch."""
