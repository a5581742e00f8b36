"""What the topics say, kept up to date: processes in memory, jobs and dead letters in a cache on disk."""
