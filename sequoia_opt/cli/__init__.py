"""The commands: options in, the library's functions called, files and summaries out."""

from sequoia_opt.cli.app import main

__all__ = ["main"]
