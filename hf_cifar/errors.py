"""The one exception that means "the input was wrong", not "the program is"."""


class UserError(Exception):
    """Bad input: one line that says what was wrong, where, and what to do. The command prints it and exits with 2."""
