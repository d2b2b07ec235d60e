"""ttrpc: frames, protocol, client and server."""
