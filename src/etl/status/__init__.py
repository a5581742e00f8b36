"""What a consumer reports of itself."""
