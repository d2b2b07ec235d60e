"""ttrpc: frames, the protocol, and clients and servers for trio, asyncio and threads."""
