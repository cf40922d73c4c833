"""Kept for one release: versions registered before 0.2 import this name of registry/service.py."""

from densitywatch.registry.service import MAX_REQUEST, Answer, Service, read_json, too_large

__all__ = ["MAX_REQUEST", "Answer", "Service", "read_json", "too_large"]
