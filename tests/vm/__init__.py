"""Tests inside a machine with systemd and pure cgroup v2: `make test-vm`."""
