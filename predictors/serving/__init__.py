"""The serving path: one port, the data plane, lifecycle and metrics; imports neither torch nor kserve."""
