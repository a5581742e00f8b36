"""The API process: REST, live pages and metrics, from views that are rebuilt from topics. No consumer imports it."""
