"""Variables of a process in gVisor's sandbox, each with its reason. What they save is in docs/edge.md, "Under gVisor"."""

VARIABLES = {
    "OMP_WAIT_POLICY": ("PASSIVE", "threads that spin take the cores that gVisor's own kernel runs on"),
    "MALLOC_ARENA_MAX": (
        "1",
        "a second arena grows page by page, each by a call of gVisor's kernel: seconds of a start",
    ),
}
