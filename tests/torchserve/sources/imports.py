"""One class defined here, and one that is only imported, which does not count."""

from collections import OrderedDict
from pathlib import PurePath as PurePath


class Own:
    def initialize(self, context):
        self.kept = OrderedDict(loaded=True)

    def handle(self, data, context):
        return [self.kept] * len(data)
