"""A plan as an HTML page, and the results of `bench` as figures.

Knows the page's contents and layout. Knows nothing of measuring or solving.
"""
