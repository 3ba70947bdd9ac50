"""Tests of Belljar; CONTRIBUTING.md says what is where."""
