"""Why a model is not served."""


class ModelRefusedError(Exception):
    """A model cannot be served, or not correctly; raised before the server starts, with the fix in the message."""
