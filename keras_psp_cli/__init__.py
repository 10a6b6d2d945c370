"""The command `keras-psp`: its options, help and completion.

A package beside `keras_psp`, because importing that one imports Keras and its backend,
which takes seconds. Help and completion need neither. The options are in
`options.json`, which `tools/write_options.py` writes from the configs; a command itself
is a function of `keras_psp.cli`.
"""

from keras_psp_cli.main import main

__all__ = ["main"]
