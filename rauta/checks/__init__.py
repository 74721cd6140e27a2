"""Active health checks: which backends are healthy."""
