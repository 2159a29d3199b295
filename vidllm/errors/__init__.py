"""The two kinds of failure that a user meets: their input is wrong, or the work failed.

Each message is one line that says what is wrong and what to do. The command line prints it
and leaves with the exit code of the class; no traceback is shown for either.
"""


class VidllmError(Exception):
    """Base of every error that vidllm raises on purpose."""

    exit_code = 1


class InputError(VidllmError, ValueError):
    """The input or an option is wrong (exit code 2)."""

    exit_code = 2


class WorkError(VidllmError, RuntimeError):
    """The input was right but the work failed (exit code 1)."""

    exit_code = 1
