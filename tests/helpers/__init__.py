"""What several tests use: small models, runs to kill, videos made on purpose."""
