"""The one exception a user's mistake raises: its message names the file, row or setting and says what to do."""


class CurationError(ValueError):
    """Bad input, a bad setting, or a file that cannot be trusted. The command line prints it as one line."""


class PassingError(CurationError):
    """Trouble of the machine, such as a full disk: the same command may succeed later."""


def one_line(error: BaseException, most: int | None = 300) -> str:
    """What an error of another library says, as part of one of our messages."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def first_cause(error: BaseException) -> str:
    """What the error says that led to others, or the first of ours among them."""
    while error.__cause__ is not None and not isinstance(error, CurationError):
        error = error.__cause__
    return one_line(error, None)


def is_final(error: BaseException) -> bool:
    """Whether the same command would fail again: a mistake of the user, and no trouble of the machine behind it."""
    cause = error.__cause__
    return (
        isinstance(error, CurationError)
        and not isinstance(error, PassingError)
        and not isinstance(cause, OSError | MemoryError | PassingError)
    )
