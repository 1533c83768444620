"""query_api: reads of views, orders and dead letters. It writes nothing."""
