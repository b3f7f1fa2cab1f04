"""Parts of `benchmarks/engine.py`: what is run, the two servers it is run on, and how runs are compared."""
