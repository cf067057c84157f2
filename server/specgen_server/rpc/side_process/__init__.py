"""The largest build requests are answered in a process of their own.

Parsing one, encoding its answer: each is one long step in C, for which Python's lock is held, and
small calls would wait for one after the other. Here the kernel deals out the time. And a request
for which the memory does not suffice ends this process, not the server.
"""

from .parent import VERY_LARGE, SideProcess

__all__ = ["VERY_LARGE", "SideProcess"]
