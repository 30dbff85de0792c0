"""Neither a function `handle` nor a class."""

NUMBER = 1
