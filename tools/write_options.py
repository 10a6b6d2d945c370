"""Writes `keras_psp_cli/options.json` from the configs."""

import json

from keras_psp.cli import describe_options
from keras_psp_cli.parser import OPTIONS

OPTIONS.write_text(json.dumps(describe_options(), indent=1) + "\n", encoding="utf-8")
