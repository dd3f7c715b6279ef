"""How the client talks to etcd: gRPC, the messages of etcd's API, its errors and its versions."""
