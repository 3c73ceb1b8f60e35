"""The error of everything that is wrong with a checkpoint."""


class CheckpointError(ValueError):
    """A checkpoint that does not fit the model or is corrupted. Nothing of it was loaded."""
