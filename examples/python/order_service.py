"""An order service that tells its customer that an order was shipped.

    pip install -r requirements.txt
    python order_service.py --user 42 --order 1001

TIDINGS_ADDR is the service door of any node (127.0.0.1:8081 if unset), or dns:///a.name:8081 for all the nodes that the name
has addresses of; TIDINGS_API_KEY a key with the scope push.
"""

import argparse
import json
import os
import sys

import grpc

from tidings.v1 import tidings_pb2, tidings_pb2_grpc


def push(stub, user, event):
    """Tells `user` about `event`; the answer says what became of it."""
    key = os.environ.get("TIDINGS_API_KEY", "dev-key-not-for-production")
    request = tidings_pb2.PushRequest(user_id=user, json=json.dumps(event, separators=(",", ":")))
    # The deadline also tells the node how long it may try: it answers 50 ms before.
    return stub.PushNotification(request, timeout=5, metadata=[("authorization", f"Bearer {key}")])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--user", default="42", help="whom to tell")
    parser.add_argument("--order", type=int, default=1001, help="the order that was shipped")
    args = parser.parse_args()

    # Plain text, as inside a private network. Across any other: grpc.secure_channel. With round_robin the calls go to every
    # node that the address stands for, and past one that is away.
    spread = [("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')]
    with grpc.insecure_channel(os.environ.get("TIDINGS_ADDR", "127.0.0.1:8081"), options=spread) as channel:
        stub = tidings_pb2_grpc.NotificationStub(channel)
        try:
            answer = push(stub, args.user, {"order": args.order, "state": "shipped"})
        except grpc.RpcError as error:
            sys.exit(f"order {args.order}: {error.code().name}: {error.details()}")
    status = tidings_pb2.Status.Name(answer.status)
    print(f"{status} message={answer.message_id} connections={answer.local_connections}")


if __name__ == "__main__":
    main()
