"""What own data raises on purpose."""

from foveate.errors import FoveateError


class DataError(FoveateError, ValueError):
    """Data that no evaluation can use: the message names the file, and the row where it is one, and says why."""


class RowError(DataError):
    """A row that cannot be used; the message says why, and whoever reads the table knows which row it is."""
