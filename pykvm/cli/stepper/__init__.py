"""The stepper's screen: ``pykvm step`` on a terminal, built on Textual.

    views      pure functions from a guest that stands still to rows of text: ``listing``, ``memory``, ...
    engine     the thread that the guest runs on, so that the screen never waits for it
    app        the panes, the keys, and what the keys do

Leaves out stepping itself: see ``pykvm.observe.stepping``.
"""
