"""The commands of `tools/measure.py`, a module each."""
