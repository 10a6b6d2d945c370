"""The category of warnings that tasks will disturb each other."""

# How each of them ends.
OFF = 'Off: `warnings.simplefilter("ignore", keras_psp.InterferenceWarning)`.'


class InterferenceWarning(UserWarning):
    """Says that tasks will disturb each other much, in numbers, and what mends it.

    Example:

    >>> import warnings
    >>> import keras_psp
    >>> warnings.simplefilter("ignore", keras_psp.InterferenceWarning)  # Off.
    """
