"""etl-file-sync: a file-transfer appliance driven by Kafka."""
