"""What becomes of a job after an error, and how long it waits."""
