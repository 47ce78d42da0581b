"""A repository of profiles, acceptance and trees.

Knows where its files lie, which of them may be replaced, and whether its trees are up to date.
"""
