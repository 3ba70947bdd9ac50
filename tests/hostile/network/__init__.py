"""Attacks on the network policy, in a small internet that the tests make: see world.py."""
