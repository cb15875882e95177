"""`python -m onceflow` is `onceflow`."""

from onceflow.cli import main

if __name__ == "__main__":
    main()
