"""The gRPC service: its methods, and all that surrounds a call."""

import os

# Before gRPC is imported: its older poller wakes one thread for a call where the newer one
# wakes two. What an operator has set holds.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")
# Where a process cannot be started, Python tries again by fork(2), and what gRPC does around
# one hangs or aborts a server at work. No child of ours uses gRPC without exec(3).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
