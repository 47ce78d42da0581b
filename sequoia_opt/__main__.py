"""`python -m sequoia_opt` is the command line."""

from sequoia_opt.cli import main

if __name__ == "__main__":
    main()
