"""A module-level function that tells what it was given: of each row the keys, the values' types and their text."""


def handle(data, context):
    if data is None:
        return None
    return [{key: [type(value).__name__, plain(value)] for key, value in row.items()} for row in data]


def plain(value):
    return value.decode("latin-1") if isinstance(value, (bytes, bytearray)) else value
