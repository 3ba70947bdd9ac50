"""The network of sandboxes that have one, enforced outside of them.

A sandbox with network lives in a network namespace of its own whose only link leads to a second one, the gateway.
From there no link leads anywhere: what crosses is what this package lets cross. Every TCP connection ends at the proxy,
which reads the name, judges name, port and address, and connects anew from the host; every DNS query ends at a
responder that hands out stand-in addresses. Everything else is refused. When this process dies, the namespaces are gone
with it.

- `rules` what may be reached by name and port, and what the server allows at all; pure
- `addresses` which addresses are public; pure
- `client_hello`, `http_head` what a connection says it wants to reach; pure
- `budget` how much, and the record of what was denied
- `netlink`, `namespace` the pair of namespaces
- `resolver`, `dns` names to addresses: outside, and for the sandbox
- `dial`, `proxy` connections: to the outside, and for the sandbox
- `gateway` all of it for one sandbox
"""
