"""The commands: options in, the library's functions, files and summaries out."""

# Each module adds its commands to the application; in this order --help lists them.
from sequoia_opt.cli import profile, solve, decode, bench, show, compare_drafts, export  # noqa: I001
from sequoia_opt.cli.app import app, main

__all__ = [
    "app",
    "bench",
    "compare_drafts",
    "decode",
    "export",
    "main",
    "profile",
    "show",
    "solve",
]
