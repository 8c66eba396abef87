from tests.unit.control.conftest import backend, door, sender, services

__all__ = ["backend", "door", "sender", "services"]
