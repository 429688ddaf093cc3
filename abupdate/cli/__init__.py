"""The command line: parses arguments, then imports the one handler that is asked for."""
