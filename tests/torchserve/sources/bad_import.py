"""An import that fails inside the handler."""

import a_module_that_nobody_has


def handle(data, context):
    return a_module_that_nobody_has.answer(data)
