"""The two ways a job can be refused, each told in one line that says what is wrong and where."""


class InputError(ValueError):
    """Bad usage or input: names the file, offset or field and what was expected (exit code 2)."""


class ClusterError(RuntimeError):
    """No scheduler or no board can be reached (exit code 4)."""
