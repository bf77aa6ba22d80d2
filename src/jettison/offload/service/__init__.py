"""The offloading service: a device process, and a worker process that is not trusted, over TCP."""
