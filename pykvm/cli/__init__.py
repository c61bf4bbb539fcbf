"""The command line: one module a sub-command, over the same API that everybody has.

Guest output goes to stdout, everything pykvm says goes to stderr, and the exit status says how it ended: see
``pykvm.cli.main``. Leaves out every mechanism: a sub-command only reads arguments and prints.
"""
