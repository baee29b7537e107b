"""What may be wrong without being an error. Errors themselves are `foundation.errors.CurationError`."""


class HeightWarning(UserWarning):
    """Heights that no tree has: most likely they are in other units than was said."""
