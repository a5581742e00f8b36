"""What the API does: sends jobs, settles dead letters, gives orders. Kafka alone keeps the state of it."""
