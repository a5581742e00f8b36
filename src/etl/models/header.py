"""The names of our records' headers. A leaf."""

JOB_ID = "etl-job-id"
GROUP = "etl-group"
ORIGIN = "etl-origin"  # where a job was first delivered: topic, partition, offset
ATTEMPTS = "etl-attempts"  # JSON
NOT_BEFORE = "etl-not-before"
REPLAYS = "etl-replays"  # how often a job was sent back from the dead letters, decimal
MARKER = "etl-marker"  # in the dead-letter topic: a note about another record, no dead letter itself

REPLAYED = b"replayed"  # the value of MARKER: the dead letter that the note names was sent back
