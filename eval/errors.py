"""The one exception a user's mistake raises here: its message names the file, row or setting and says what to do."""


class EvalError(ValueError):
    """Bad input, a bad setting, or data that is not there. The command line prints it as one line."""
