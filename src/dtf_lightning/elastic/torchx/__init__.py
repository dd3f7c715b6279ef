"""Launchers other than torchrun: torchx components. torchx is optional and imported only when a component is used."""
