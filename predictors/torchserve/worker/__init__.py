"""What runs in an archive's own process: the handler, and the shapes that its callers' requests and answers have."""
