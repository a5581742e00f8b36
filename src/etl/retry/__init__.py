"""What happens to a job after an error, and how long it waits."""
