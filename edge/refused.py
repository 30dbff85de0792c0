"""Why a bundle is not accepted, or not installed."""

from typing import Literal

from torpor.predictors.errors import InvalidInput

Reason = Literal[
    "malformed",  # not of the form that it must have
    "link",  # a link, device or anything else that is neither file nor folder
    "unexpected",  # something that nothing refers to
    "missing",  # something that is referred to and is nowhere
    "digest",  # not the bytes that were signed
    "signature",  # not signed by enough of the trusted keys
    "version",  # older than what was accepted before, or not what belongs together
    "expired",  # metadata beyond its time
    "name",  # another bundle than the node's, or than the target's
    "platform",  # for another architecture
    "profile",  # for another node: more memory, another runtime, a device that is not there
    "space",  # the disk is full
    "busy",  # another installation runs
    "state",  # the node's own state does not allow it
]


class Refused(InvalidInput):
    """Nothing has changed what the node serves. reason: one word, for programs; the message is for people."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{message} [{reason}]")
        self.reason = reason
