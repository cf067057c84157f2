"""What specgen and specgen-server share: flags for options, ids of this host, addresses."""
