"""Sessions to servers: reused, limited, kept alive, lent in pairs. Knows no job, no Kafka."""
