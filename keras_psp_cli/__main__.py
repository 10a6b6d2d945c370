"""Runs the command as `python -m keras_psp_cli`."""

import sys

from keras_psp_cli import main

sys.exit(main())
