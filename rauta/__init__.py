"""RAUTA's control plane: reads a configuration, fills the BPF maps, attaches the router and the backends' agents.

The ways in are `rauta.config.load_config`, `rauta.keys.Keys`, `rauta.router.Router` and `rauta.agent.Agent`. Nothing
is imported here, so that reading a configuration needs neither libbpf nor root. docs/architecture.md shows the house.
"""
