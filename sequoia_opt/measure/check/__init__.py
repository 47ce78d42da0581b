"""Checks of a server: is its speculation on, lossless, and as fast as it could be?"""
