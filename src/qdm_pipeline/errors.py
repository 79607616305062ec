"""The one exception that means: the person who runs this can mend it."""


class InputError(ValueError):
    """Bad input from a user: its message names the file, key or clip, what was found and what is allowed."""
