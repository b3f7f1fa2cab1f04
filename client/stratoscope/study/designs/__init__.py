"""Designs: pure, seeded generators from a table of material to the texts, labels and groups of an experiment."""
