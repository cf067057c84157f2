"""What the commands of both sides share and is no domain: flags for options, ids of this host."""
