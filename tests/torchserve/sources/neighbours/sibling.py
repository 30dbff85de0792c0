NAME = "a sibling"
