"""What can go wrong with the local stack, as a person should read it."""


class StackError(Exception):
    """One line that says what is wrong and, where known, what to do."""


class StateDirBusyError(StackError):
    """Another live process works on this state directory."""
