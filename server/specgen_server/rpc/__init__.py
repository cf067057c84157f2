"""The gRPC service: its methods, and all that surrounds a call."""
