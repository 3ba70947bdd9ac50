"""Version 1 of the contract: `sandbox_pb2` and `sandbox_pb2_grpc`, generated from `sandbox.proto` beside them."""
