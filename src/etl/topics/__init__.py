"""The companions of a source topic: their names and settings, and trimming."""
