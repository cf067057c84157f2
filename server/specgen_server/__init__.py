"""tvix-specgen's server: the gRPC service around specgen_core."""
