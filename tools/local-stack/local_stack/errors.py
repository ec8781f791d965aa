"""What can go wrong with the local stack, as a person should read it."""


class StackError(Exception):
    """One line that says what is wrong and, where known, what to do; `exit_code` for a command."""

    exit_code = 1


class WrongUseError(StackError):
    """An option or a setting can't be as it is, or another live process works on the state directory."""

    exit_code = 2
