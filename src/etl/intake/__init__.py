"""Which partitions are ours, and which of their records become jobs. Knows no protocol."""
