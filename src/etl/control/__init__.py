"""What operators do to running consumers: hold, cancel, drain, try now. Through one topic, and recorded in another."""
