"""The contract of Belljar as generated code; `belljar.v1` is its only version."""
