"""What travels between processes: generated protobuf, and the one map between our errors and gRPC's.

The generated code is in ``v1`` (see ``proto/README.md``). Messages are mapped to models by pure functions that
stand next to their models' component (``fleet/adapters/messages.py``, ``tasks/adapters/messages.py``), because this
floor is below both.
"""
