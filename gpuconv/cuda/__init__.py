"""What lies between an operation and a device: kernel sources, launch plans, the runtimes."""
