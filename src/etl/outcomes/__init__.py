"""How jobs ended, reported to Kafka: results, deferrals and dead letters, in one transaction with the offsets."""
