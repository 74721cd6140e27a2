"""What the kernel knows about interfaces, routes and neighbours, and its network namespaces."""
