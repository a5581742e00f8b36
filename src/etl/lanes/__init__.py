"""The threads that carry jobs out: each holds a lease and moves one file after the other. Knows no Kafka."""
