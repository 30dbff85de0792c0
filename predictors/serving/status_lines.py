"""What every answer has: a status line and the date."""

import time
from email.utils import formatdate
from http import HTTPStatus

STATUS_LINES = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}

_date = (0, b"")


def date() -> bytes:
    """The value of the Date field, made once a second (RFC 9110, 6.6.1)."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        _date = now, formatdate(now, usegmt=True).encode()
    return _date[1]
