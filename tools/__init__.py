"""Checks of this repository, run by `make house`: layout, public docstrings, words, the architecture page."""
