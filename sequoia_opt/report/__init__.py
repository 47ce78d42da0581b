"""A plan as an HTML page, and the results of `bench` as figures.

Knows what is shown and how. Knows nothing of how anything was measured or solved.
"""
