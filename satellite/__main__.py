"""``python -m satellite``."""

from satellite.cli import main

if __name__ == "__main__":
    main()
