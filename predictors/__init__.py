"""What a predictor's author imports: nothing but the errors that a class may raise.

A predictor is a plain class (see docs/predictor.md); this package asks nothing of it. Importing it costs no torch,
no server and no cluster client.
"""

from .errors import InvalidInput, TorporError

__all__ = ["InvalidInput", "TorporError"]
