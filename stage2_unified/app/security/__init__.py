"""Access control of the web page: login, upload and argument checks, request limits, browser headers."""
