"""The selective scan: a plain reference and the backends held to it."""

from sigma.ops.dispatch import backend_of, choose_backend, selective_scan

__all__ = ["backend_of", "choose_backend", "selective_scan"]
