"""A policy for clients on the network: openpi's websocket protocol.

request    a client's message -> what the policy is given, checked
batching   many clients' requests on one device
websocket  connections, limits, health, shutdown
metrics    counters, as Prometheus reads them
"""
