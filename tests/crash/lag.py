"""What a flow has left to do, as its consumer group says."""

from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition
from confluent_kafka.admin import OffsetSpec

from tests.crash.scene import Scene


def lag(scene: Scene) -> int:
    """How many records of the flow's inputs and inboxes lie above the group's committed offsets."""
    topics = scene.admin.list_topics(timeout=20).topics
    inputs = [name for name in topics if name == scene.shared or name.startswith(scene.own_prefix)]
    asked = [
        TopicPartition(name, p) for name in (*inputs, f"{scene.flow}.inbox") for p in topics[name].partitions
    ]
    ends = scene.admin.list_offsets({at: OffsetSpec.latest() for at in asked})
    group = ConsumerGroupTopicPartitions(scene.flow, asked)
    done = scene.admin.list_consumer_group_offsets([group])[scene.flow].result(20).topic_partitions
    offsets = {(at.topic, at.partition): max(0, at.offset) for at in done}
    return sum(end.result(20).offset - offsets[at.topic, at.partition] for at, end in ends.items())
