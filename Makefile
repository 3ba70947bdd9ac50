# What a developer does here. Each target starts from nothing: it makes .venv and sets the machine up when need be.
.DEFAULT_GOAL := help
.PHONY: help demo test test-unit image test-image test-vm check fmt generate lock bench setup serve clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: ## from nothing to four examples in real sandboxes, as root on Debian or Ubuntu; some minutes, then seconds
	@scripts/demo

test: ## every test, as root, from nothing likewise
	@scripts/test

test-unit: ## the tests that need neither root nor gVisor
	@scripts/bootstrap dev
	@.venv/bin/python -m pytest tests/unit

image: ## the container image, with Docker or Buildah
	@scripts/image

test-image: ## the image in a real engine (podman, runc), as root
	@scripts/test-image

test-vm: ## the systemd unit on a host with nothing but cgroup v2, in QEMU, as root; up to 20 minutes
	@scripts/test-vm

check: ## ruff, mypy, buf, import rule, generated code fresh
	@scripts/check

fmt: ## format and mend what ruff can mend
	@scripts/bootstrap dev
	@.venv/bin/ruff check --quiet --fix-only .
	@.venv/bin/ruff format .

generate: ## the Python code of proto/
	@scripts/bootstrap dev
	@scripts/generate

lock: ## the lock files, after a change of dependencies
	@scripts/bootstrap dev
	@scripts/lock

bench: ## the table of bench/README.md, measured here, as root
	@scripts/bootstrap dev
	@.venv/bin/belljar setup
	@.venv/bin/python -m bench

setup: ## make this machine ready: runsc and images, as root
	@scripts/bootstrap server
	@.venv/bin/belljar setup

serve: setup ## run the service on its default ports
	@.venv/bin/belljar serve

clean: ## remove what was made in this folder; /var/lib/belljar stays
	@rm -rf .venv out dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
