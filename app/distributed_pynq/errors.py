"""The two ways a job can be refused; every message is one line that names what is wrong and where."""


class InputError(ValueError):
    """Bad usage or input: names the file, offset or field and what was expected (exit code 2)."""


class ClusterError(RuntimeError):
    """No scheduler or no board can be reached (exit code 4)."""
