"""Downloads that leave one good file or none, however the network, the server or a second process behaves."""

from vmamba.weights.download.fetch import fetch, verify

__all__ = ["fetch", "verify"]
