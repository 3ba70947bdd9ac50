"""The Belljar server; `app` builds it, `__main__` starts it, ARCHITECTURE.md is the map."""
