"""One check of the network modes, for any server whose host is in the world: in a container, as a unit."""

from __future__ import annotations

from collections.abc import Callable

from belljar_client import Limits, Result

PATIENT = Limits(timeout=500, cpu_time=500)
REACH = """
import json, socket, urllib.error, urllib.request
def reach(host):
    try:
        with urllib.request.urlopen(f"http://{host}/", timeout=120) as answer:
            return json.loads(answer.read())["at"]
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return "no such name" if isinstance(error.reason, socket.gaierror) else str(error.reason)
[reach(host) for host in ("api.example.com", "a.example.org", "10.99.0.5", "metadata.example.org")]
"""


def assert_modes_are_enforced(execute: Callable[..., Result]) -> None:
    """By name and by address; what is not public is never reached, though there is a server behind each."""
    allowed = execute(REACH, allow=["api.example.com"], limits=PATIENT).check()
    assert allowed.value == ["11.22.33.44", "no such name", 403, "no such name"]
    full = execute(REACH, network="full", limits=PATIENT).check()
    assert full.value == ["11.22.33.44", "11.22.33.45", 403, 403]
    assert "10.99.0.5" in {each.host for each in allowed.denied_connections}
    assert {each.host for each in full.denied_connections} == {"10.99.0.5", "metadata.example.org"}
