"""The one exception a user's mistake raises: its message names the file, row or setting and says what to do."""


class CurationError(ValueError):
    """Bad input, a bad setting, or a file that cannot be trusted. The command line prints it as one line."""
