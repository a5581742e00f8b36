"""The resources of the API, one file for each kind. Handlers are thin: views and services do the work."""
