"""Studies: many experiments on one model, run from one file and reported on one page."""
