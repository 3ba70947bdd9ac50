"""npm packages: resolved and installed by npm, whose package scripts are off."""

from __future__ import annotations

import json
import os
from typing import Any

import protocol
from python_packages import USER, Steps, read, write

REGISTRY = "http://127.0.0.1:4873/npm/"
NPM = ["/usr/local/bin/node", "/opt/belljar/npm/node_modules/npm/bin/npm-cli.js"]


def install_npm(job: dict[str, Any], host: protocol.Host, steps: Steps, work: str, layer: str) -> None:
    """Installs what the job asks for into `layer`/node_modules."""
    settings = {
        "registry": REGISTRY,
        "cache": f"{work}/cache",
        "userconfig": "/dev/null",
        "ignore_scripts": "false" if job["builds"] else "true",
        "audit": "false",
        "fund": "false",
        "update_notifier": "false",
        "progress": "false",
        "bin_links": "false",
        "omit": "dev",
        "fetch_timeout": "600000",
        "fetch_retries": "3",  # for files that break off, as with uv
        "fetch_retry_mintimeout": "500",
        "omit_lockfile_registry_resolved": "true",
        "logs_max": "0",
        "color": "false",
    }
    env = {f"npm_config_{name}": value for name, value in settings.items()}
    write(f"{layer}/package.json", json.dumps({"private": True, "dependencies": job["requirements"]}))
    if job["lock"]:
        write(f"{layer}/package.json", json.dumps(json.loads(job["lock"])["packages"][""]))
        write(f"{layer}/package-lock.json", job["lock"])
    os.chown(layer, USER, USER)  # from here on it is npm's
    steps.run("install", [*NPM, "ci" if job["lock"] else "install", "--prefix", layer], env)
    host.send_bytes(protocol.LOCK, (job["lock"] or read(f"{layer}/package-lock.json")).encode())
