"""Tests of the real server with real gVisor and a real object store."""
