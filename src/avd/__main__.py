"""`python -m avd`."""

from avd.cli.main import main

main()
