"""Routine requests, answered from pieces of earlier answers.

The builds of one coordinator share most inputs and variables, and nearly all else. So the
pieces are known by their bytes on the wire, and an answer is put together from them. No rule
of a request, of a spec or of a diagnostic is written here: pieces come from asking the plain
way (specgen_core), and what hangs on several pieces together is routine only where it plainly
holds. Leave this package out, and nothing changes but the time.
"""

from .door import Quick

__all__ = ["Quick"]
