"""The commands: options in, the library's functions, files and summaries out."""

# Each module adds its commands to the application; in this order --help lists them.
from sequoia_opt.cli import measuring, planning, decoding, benching, drawing, drafting, exchanging  # noqa: I001
from sequoia_opt.cli.app import app, main

__all__ = [
    "app",
    "benching",
    "decoding",
    "drafting",
    "drawing",
    "exchanging",
    "main",
    "measuring",
    "planning",
]
