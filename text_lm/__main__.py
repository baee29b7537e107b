"""``python -m text_lm``."""

from text_lm.cli import main

if __name__ == "__main__":
    main()
