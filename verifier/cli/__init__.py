"""The command line: one small file a command, arguments in, text or JSON out."""
