"""Which job runs next, and on how many lanes. Knows no Kafka, no protocol; opens no session."""
