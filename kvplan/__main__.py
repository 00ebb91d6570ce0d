"""`python -m kvplan`."""

from kvplan.cli.main import main

if __name__ == "__main__":
    main()
