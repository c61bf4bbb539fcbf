"""A gdb stub: stock gdb debugs a guest through the remote serial protocol.

    gdb  <--bytes-->  server  <--packets-->  session  <--commands-->  debuggee  <-->  Machine, Stepper

See: the manual of gdb, appendix "gdb Remote Serial Protocol". Leaves out what the commands do to a machine: see
``pykvm.observe.stepping``.
"""
