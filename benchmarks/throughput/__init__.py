"""The benchmark of the whole: every stage against its limit and against what else could be used, in one run."""
