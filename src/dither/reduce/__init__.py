"""AllReduce: transports carry messages, algorithms order them, protections make them safe."""
