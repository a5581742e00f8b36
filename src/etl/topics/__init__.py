"""The topics that belong to a source topic: their names, their settings, what may be trimmed."""
