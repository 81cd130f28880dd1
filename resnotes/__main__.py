"""`python -m resnotes`."""

from resnotes.cli import main

if __name__ == "__main__":
    main()
