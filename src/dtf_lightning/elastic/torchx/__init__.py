"""Components for the launcher torchx, which is optional and imported only when a component is used."""
