"""A repository of profiles, acceptance and trees.

Where its files are, which of them may be replaced, and whether its trees are up to date.
"""
