"""Generators of texts: a table of items or pairs in, a table of counterbalanced texts out."""
