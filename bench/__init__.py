"""Measures a real server beside bare interpreters in the same run; `python -m bench`, or `make bench`."""
