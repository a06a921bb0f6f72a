"""Errors that a user can mend. Needs no torch."""


class UserError(Exception):
    """One plain sentence: what is wrong, where (file, line or key), and the cure. A command that ends with it has exit code 2."""


class CheckpointError(UserError):
    """A checkpoint that cannot be used: which file or tensor, what is wrong, the cure."""
