"""What `avd evaluate` does with what it is given."""
