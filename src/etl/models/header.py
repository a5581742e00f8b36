"""Names of the headers that we write. A leaf."""

JOB_ID = "etl-job-id"
GROUP = "etl-group"
ORIGIN = "etl-origin"  # where the job was first delivered: topic, partition, offset
ATTEMPTS = "etl-attempts"  # JSON
NOT_BEFORE = "etl-not-before"
BUNDLE = "etl-bundle"  # the message of several jobs that this one was in: topic, partition, offset
REPLAYS = "etl-replays"  # how often the job was replayed from the dead-letter topic, decimal
WAITING_SINCE = "etl-waiting-since"  # when the job began to wait for a server that is down: UTC, ISO 8601
RECALLABLE = "etl-recallable"  # the job only waits for its servers: it may run before it is due
OUTAGES = "etl-outages"  # number of consecutive outages, decimal
ORPHANS = "etl-orphans"  # earlier runs may have left orphans; the path of the one that the job may go on with, or 1
PUBLISHED = "etl-published"  # JSON: the copy has its final name, the source action remains
MARKER = "etl-marker"  # only in the dead-letter topic: the record is a note about another one, not a dead letter

REPLAYED = b"replayed"  # value of MARKER: the dead letter that the note names was replayed
DISCARDED = b"discarded"  # value of MARKER: that dead letter was given up
