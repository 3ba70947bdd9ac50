"""What programs in the sandbox have in common: attempts that give an answer whatever happens."""

from __future__ import annotations

TRY = """
import errno, http.client, json, socket, ssl, time, urllib.error, urllib.request
TLS = ssl._create_unverified_context()
def get(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10, context=TLS) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return [error.code, error.read().decode()]
    except urllib.error.URLError as error:
        return name(error.reason)
    except (OSError, http.client.HTTPException) as error:
        return name(error)
def name(error):
    if isinstance(error, ssl.SSLError):
        return error.reason
    if isinstance(error, socket.gaierror):
        return "no such name"
    return errno.errorcode.get(getattr(error, "errno", None), type(error).__name__)
def say(host, port, data=b"", much=65536, patience=10):
    try:
        with socket.create_connection((host, port), patience) as connection:
            if data:
                connection.sendall(data)
            return connection.recv(much).decode("latin-1")
    except OSError as error:
        return name(error)
def timed(work, *arguments):
    began = time.monotonic()
    answer = work(*arguments)
    return [answer, time.monotonic() - began]
"""
