"""Faults, kills and freezes: what must hold whatever dies."""
