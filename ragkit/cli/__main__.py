"""``python -m ragkit.cli``: the command line."""

from ragkit.cli.main import main

if __name__ == "__main__":
    main()
