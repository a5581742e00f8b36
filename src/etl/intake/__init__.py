"""Which partitions this process holds, and which of their records become jobs. Knows no protocol."""
