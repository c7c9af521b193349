"""Three nodes over one Redis, each of which hears a topic that services publish to."""

from children import until
from gateway import Gateway
from redis_server import RedisServer

TOPIC = "orders.completed"
CONFIG = """
[backplane]
kind = "redis"
url = "{url}"

[[sources]]
kind = "redis-pubsub"
topic = "{topic}"
user = "/customer/id"
message = ""
"""


class Cluster:
    """Its `nodes` are ready and hear the topic. Their configuration is in `folder`, which must outlive them."""

    def __init__(self, binary, folder):
        self.redis = RedisServer()
        config = folder / "cluster.toml"
        config.write_text(CONFIG.format(url=self.redis.url, topic=TOPIC), encoding="utf-8")
        self.nodes = [Gateway(binary, "--config", config, "--set", f"node.id=n{n}") for n in (1, 2, 3)]
        for node in self.nodes:
            until("every node is ready", node.is_ready)
        # A node is ready without its sources.
        until("every node hears the topic", lambda: self._listeners() == len(self.nodes))

    def publish(self, event):
        """Publishes to the topic, as a service does that knows nothing of nodes; how many heard it."""
        [heard] = self.redis.cli("PUBLISH", TOPIC, event)
        return int(heard)

    def taken(self, events):
        """Whether every node has taken that many events from the topic."""
        return all(node.metric("tidings_source_events_total") == events for node in self.nodes)

    def _listeners(self):
        _, count = self.redis.cli("PUBSUB", "NUMSUB", TOPIC)
        return int(count)
