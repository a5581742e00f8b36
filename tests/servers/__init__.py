"""Small FTP servers for tests, each in a thread of the test's own process."""
