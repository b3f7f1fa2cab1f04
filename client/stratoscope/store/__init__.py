"""A run on disk: a ledger that says what is committed, and immutable shards that hold it."""
