"""Says in the log when a handler unpickles: whoever made that file decides what runs here.

What a pickle names is imported and called; `torch.load(..., weights_only=True)`, torch's default since 2.6, and safetensors
are read by others, which know a few names. It is noticed by Python's own audit (https://docs.python.org/3/library/audit_events.html).
"""

import logging
import sys
from pathlib import Path
from types import FrameType

logger = logging.getLogger("torpor.handler")


def watch(folder: Path) -> None:
    """Look for it from now on, in this process for good; the first time is said, with the place in `folder` that led to it."""
    is_said = False

    def hear(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal is_said
        if event != "pickle.find_class" or is_said:
            return
        place = _place(sys._getframe(1), folder)
        if place is None:
            return  # a library's own affair, such as a cache
        is_said = True
        module, name = arguments[0], arguments[1]
        logger.warning(
            "%s unpickles (%s.%s): a pickle runs what its author likes; weights_only=True or safetensors would not",
            place, module, name,
        )  # fmt: skip

    sys.addaudithook(hear)


def _place(frame: FrameType | None, folder: Path) -> str | None:
    """FILE:LINE of the archive's innermost code on the stack, or of TorchServe's own handler; None without either."""
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if file.is_relative_to(folder):
            return f"{file.relative_to(folder)}:{frame.f_lineno}"
        if "torch_handler" in file.parts:
            return f"{file.name}:{frame.f_lineno}"
        frame = frame.f_back
    return None
