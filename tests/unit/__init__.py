"""Tests that need neither root nor gVisor."""
