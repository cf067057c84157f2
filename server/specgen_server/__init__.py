"""tvix-specgen's server side: the domain (``spec``) and the gRPC service around it."""
