"""The exceptions whose message says all there is to say: they are shown without a stack."""


class InputError(ValueError):
    """Bad input from a user: its message names the file, key or clip, what was found and what is allowed."""


class DivergenceError(ArithmeticError):
    """A training has gone wrong: its message names the update, what is wrong and the bound it broke."""


class WorkerError(RuntimeError):
    """A rank failed: the message says which, how, and shows its own traceback."""
