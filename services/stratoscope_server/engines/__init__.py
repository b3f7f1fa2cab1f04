"""Engines: what runs a model and reads its sites."""
