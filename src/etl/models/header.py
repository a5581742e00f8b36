"""Names of the headers that we write. A leaf."""

JOB_ID = "etl-job-id"
GROUP = "etl-group"
ORIGIN = "etl-origin"  # where the job was first delivered: topic, partition, offset
ATTEMPTS = "etl-attempts"  # JSON
NOT_BEFORE = "etl-not-before"
BUNDLE = "etl-bundle"  # the message of several jobs that this one was in: topic, partition, offset
REPLAYS = "etl-replays"  # how often the job was replayed from the dead-letter topic, decimal
MARKER = "etl-marker"  # only in the dead-letter topic: the record is a note about another one, not a dead letter

REPLAYED = b"replayed"  # value of MARKER: the dead letter that the note names was replayed
DISCARDED = b"discarded"  # value of MARKER: that dead letter was given up
