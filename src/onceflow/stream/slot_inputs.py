"""What each granted slot reads, and how that changes: topics that are new, gone, back, or deleted and made anew."""

import logging
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import KafkaException

from onceflow.config import Settings
from onceflow.stream.cluster import Cluster, KafkaAway, Partition, Topic
from onceflow.stream.content import Grant, Input
from onceflow.stream.news import Added, News, Removed
from onceflow.stream.progress import InputProgress, Progress, Skip, unfinished_below
from onceflow.stream.topics import Names, inputs_of, slot_of_input, tenant_of

log = logging.getLogger(__name__)

Track = Callable[[Iterable[tuple[Input, InputProgress]]], None]


class SlotInputs:
    """See above. `track`: takes over the progress of inputs that are about to be read."""

    def __init__(self, flow: str, slots: int, cluster: Cluster, settings: Settings, track: Track) -> None:
        self._names = Names.of(flow)
        self._slots = slots
        self._cluster = cluster
        self._settings = settings
        self._track = track
        self._read: dict[Grant, dict[Partition, Input]] = {}
        self._missing: dict[Grant, dict[Partition, Input]] = {}  # those whose topic is not listed any more
        self._replaced: set[str] = set()  # ids of topics that were made anew
        self._not_there: set[Partition] = set()  # said so
        self._written: dict[Grant, Mapping[Partition, Progress]] = {}  # what F.progress held at the grant

    def inboxes(
        self, grants: Iterable[Grant], written: Mapping[int, Mapping[Partition, Progress]]
    ) -> dict[Grant, Input]:
        """The inbox of each grant; `written`: what F.progress holds, by slot."""
        inbox = self._cluster.topics([self._names.inbox])[self._names.inbox]
        wanted = {grant: (inbox.name, grant.slot) for grant in grants}
        firsts = self._cluster.first_offsets(wanted.values())
        found = {}
        for grant, at in wanted.items():
            input, progress = self._make(inbox, grant.slot, grant, written[grant.slot].get(at), firsts[at])
            self._track([(input, progress)])
            found[grant] = self._read.setdefault(grant, {})[at] = input
        return found

    def others(
        self, grants: Iterable[Grant], written: Mapping[int, Mapping[Partition, Progress]]
    ) -> dict[Grant, list[Input]]:
        """What else they read, each input from its lowest unfinished record on; `look` adds what is not there now."""
        found = inputs_of(self.topics().values(), self._slots, self._settings)
        wanted = {grant: found.get(grant.slot, []) for grant in grants}
        firsts = self._firsts(wanted, [(t.name, p) for each in wanted.values() for t, p in each])
        inputs: dict[Grant, list[Input]] = {}
        for grant, partitions in wanted.items():
            self._written[grant] = dict(written[grant.slot])
            made = []
            for topic, partition in partitions:
                if (first := firsts.get(at := (topic.name, partition))) is not None:
                    made.append(self._make(topic, partition, grant, self._written[grant].get(at), first))
            self._track(made)
            inputs[grant] = [input for input, _ in made]
            self._read.setdefault(grant, {}).update({(i.topic, i.partition): i for i in inputs[grant]})
        return inputs

    def drop(self, grant: Grant) -> None:
        """Forget a slot that is lost."""
        for of_grant in (self._read, self._missing, self._written):
            of_grant.pop(grant, None)

    def _make(
        self, topic: Topic, partition: int, grant: Grant, written: Progress | None, first: int
    ) -> tuple[Input, InputProgress]:
        """An input and its progress, from what F.progress says and what the partition still holds."""
        is_inbox = topic.name == self._names.inbox
        tenant = "" if is_inbox else tenant_of(topic.name, self._settings)
        input = Input(topic.name, partition, grant, topic_id=topic.id, tenant=tenant, is_inbox=is_inbox)
        if written is None or written.topic_id != topic.id:
            input.next_offset = first
            return input, InputProgress(topic.id, first)
        progress = InputProgress(topic.id, written.lowest, written.finished, written.tally)
        input.next_offset = written.lowest
        input.skip = Skip(written.finished) if written.finished else None
        if first > written.lowest:
            lost = unfinished_below(written, first)
            if lost:
                gap = f"offsets {written.lowest} to {first - 1}"
                input.blocked = f"retention has deleted {lost} unfinished records ({gap})"
            else:
                input.next_offset = first
                progress.passed(first)
        return input, progress

    def topics(self) -> dict[str, Topic]:
        """The topics that are listed now and hold events or signals."""
        names = [name for name in self._cluster.topic_names() if self._settings.events.is_input(name)]
        return self._cluster.topics(names)

    def _firsts(self, grants: Iterable[Grant], wanted: list[Partition]) -> dict[Partition, int]:
        """The first offsets of these partitions, but of those that are not there now: nobody else waits for them.

        Asked together with the inboxes of the grants: if none of all had a leader, Kafka would be away.
        """
        if not wanted:
            return {}
        inboxes = [(self._names.inbox, grant.slot) for grant in grants]
        firsts = self._cluster.first_offsets_known([*inboxes, *wanted])
        for topic, partition in set(wanted) - firsts.keys() - self._not_there:
            log.warning(
                "an input has no leader now, or may not be asked for; it is read once that is over",
                extra={"topic": topic, "partition": partition},
            )
        self._not_there = (self._not_there | set(wanted)) - firsts.keys()
        return firsts

    def look(self) -> list[News]:
        """Find topics that are new, gone, back, or another one of the same name.

        One listing proves nothing: a broker may lag behind, or a right be taken away for a moment. So an input that is
        gone is kept with its progress, and is the same one when its topic is back: what is under way of it is known.
        """
        try:
            listed = self.topics().items()
            topics = {name: topic for name, topic in listed if topic.id not in self._replaced}
            grants = {grant.slot: grant for grant in self._read if grant.live}
            new: list[tuple[Topic, int, Grant]] = []
            for topic in topics.values():
                for partition in range(topic.partitions):
                    slot = slot_of_input(topic.name, partition, self._slots, self._settings)
                    grant = grants.get(slot)
                    if grant is not None:
                        known = self._read[grant].get((topic.name, partition))
                        if known is None or known.topic_id != topic.id:
                            new.append((topic, partition, grant))
            asked = [(topic.name, partition) for topic, partition, _ in new]
            self._not_there.intersection_update(asked)
            firsts = self._firsts(grants.values(), asked)
        except (KafkaAway, KafkaException) as error:
            log.debug("topics could not be looked up; asked again soon", extra={"cause": str(error)})
            self._cluster.renew()
            return []
        news: list[News] = []
        for grant in grants.values():
            for at, input in list(self._read[grant].items()):
                now = topics.get(at[0])
                if not input.is_inbox and (now is None or now.id != input.topic_id):
                    log.info("an input is gone", extra={"topic": at[0], "partition": at[1]})
                    self._missing.setdefault(grant, {})[at] = self._read[grant].pop(at)
                    news.append(Removed(input))
        for topic, partition, grant in new:
            if (first := firsts.get((topic.name, partition))) is None:
                continue
            input = self._added(topic, partition, grant, first)
            self._read[grant][topic.name, partition] = input
            news.append(Added(input))
        return news

    def _added(self, topic: Topic, partition: int, grant: Grant, first: int) -> Input:
        """The input of a partition that is listed now."""
        at = (topic.name, partition)
        about = {"topic": topic.name, "partition": partition}
        missing = self._missing.get(grant, {}).pop(at, None)
        if missing is not None and missing.topic_id == topic.id:
            log.info("an input is back", extra=about)
            return missing
        if missing is not None:
            self._replaced.add(missing.topic_id)
        input, progress = self._make(topic, partition, grant, self._written.get(grant, {}).get(at), first)
        self._track([(input, progress)])
        log.info("an input is new", extra=about)
        return input
