"""A group member in a process of its own, to be stopped (SIGSTOP) while its transaction is open.

Arguments: bootstrap servers, group, its topic, the topic it writes to, `offsets` or `nothing` (what the
transaction carries besides a record). Says `ready`, waits for a line, commits, says what came of it.
"""

import sys

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition


def main(bootstrap_servers: str, group: str, topic: str, output: str, carries: str) -> None:
    common = {"bootstrap.servers": bootstrap_servers, "log_level": 0}
    consumer = Consumer({
        **common,
        "group.id": group,
        "group.instance.id": "zombie",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": 6000,
        "enable.auto.commit": False,
    })  # fmt: skip
    consumer.subscribe([topic])
    while not consumer.assignment():
        consumer.poll(0.05)
    metadata = consumer.consumer_group_metadata()
    producer = Producer({**common, "transactional.id": f"{group}-zombie", "linger.ms": 0})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(output, b"of the zombie")
    producer.flush(20)
    print("ready", flush=True)
    sys.stdin.readline()
    try:
        if carries == "offsets":
            producer.send_offsets_to_transaction([TopicPartition(topic, 0, 7)], metadata, 20)
        producer.commit_transaction(20)
    except KafkaException as error:
        print(error.args[0].name(), flush=True)
    else:
        print("accepted", flush=True)


main(*sys.argv[1:])
