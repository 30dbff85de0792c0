"""Which rows run next, and when: pure functions of the time that they are given, standard library only."""
