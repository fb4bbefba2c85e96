"""The command line: parse, wire, show. Commands import what they need when they run, so `avd --help` is quick."""
