"""TUF's roles, each of which has a key: apart from what needs python-tuf, for the command's `--help`."""

ROLES = ("root", "targets", "snapshot", "timestamp")
