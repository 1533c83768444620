"""Takes orders over HTTP and appends them to the log; nothing here waits for PostgreSQL unless asked to."""
