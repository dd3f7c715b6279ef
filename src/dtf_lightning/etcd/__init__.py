"""A thin synchronous etcd v3 client over grpcio, and an embedded server for one machine.

`store` says what the rest of the package asks of a key-value store; `docs/decisions/0001-own-etcd-client.md` says why
this is not one of the existing clients.
"""
