"""The gRPC service: its methods, and all that surrounds a call."""

import os

# Before gRPC is imported: its older poller wakes one thread for a call where the newer one
# wakes two. What an operator has set holds.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener,-event_engine_client")
