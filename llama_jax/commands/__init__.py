"""The verbs of the command line, a file each: arguments(parser) and run(args)."""
