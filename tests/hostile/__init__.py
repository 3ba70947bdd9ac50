"""Attacks, each followed by the same three questions: see conftest.py."""
