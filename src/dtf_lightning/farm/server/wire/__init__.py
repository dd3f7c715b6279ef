"""How a coordinator is reached: TLS and its names, connections and their limits, and workers' certificates."""
