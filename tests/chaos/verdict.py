"""What clients were told, held against what is there: pure, so that planted losses can test the judge itself.

Checked: every accepted order is stored, once, under the id its client was told, with its own values (I1, I2); no
refused one is (I3); an unknown one is all or nothing and a repetition resolves it to one id (I4); what "nothing was
done" was said of is not there; every view equals a recomputation from the recorder's own notes, group by group, to
the cent (I5, I13), and the product's audit agrees; each shard's sums balance (conservation). The observer's own
problems (I7) are added by the runner.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from tests.chaos.facts import Facts, Row
from tests.chaos.notes import Attempt, Notes, Story


class Expected(msgspec.Struct):
    """What a scenario does to the sums on purpose."""

    dead_letters: int = 0
    imbalance: int = 0
    """Per shard, at most: entries of strangers."""
    is_loss_allowed: bool = False
    """Negative controls: orders vanish, so their repetition makes new ones."""
    is_history_lost: bool = False
    """Negative controls: the database goes back behind what it told the log and the browsers."""


class Verdict(msgspec.Struct):
    """One scenario's line in the table."""

    name: str = ""
    fault: str = ""
    negative_control: bool = False
    accepted: int = 0
    stored: int = 0
    """Accepted orders that are in PostgreSQL."""
    lost: int = 0
    duplicated: int = 0
    resolved: int = 0
    """Unknown at first, known in the end."""
    refused: int = 0
    turned_away: int = 0
    """Attempts answered 429 or 503 with "nothing was done"."""
    unknown: int = 0
    """Orders whose outcome was unknown at least once."""
    recovery_seconds: float = 0.0
    p50_ms: float | None = None
    """Of orders first sent while the fault lasted and answered 202."""
    p99_ms: float | None = None
    answered_percent: float | None = None
    """Of orders first sent while the fault lasted: accepted at the first attempt."""
    throughput_after_percent: float | None = None
    """Accepted a second after recovery, as a share of what was sent."""
    observer_seconds: float | None = None
    """From recovery until a browser that watched all the while shows what the database held then."""
    observer_connects: int = 0
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    figures: dict[str, float] = msgspec.field(default_factory=dict)
    """The scenario's own."""
    problems: list[str] = msgspec.field(default_factory=list)
    kept: bool = False
    logs: str = ""


def judge(notes: Notes, facts: Facts, expected: Expected) -> Verdict:
    verdict = Verdict()
    stories = notes.stories.values()
    problems = verdict.problems
    verdict.accepted = sum(story.is_accepted for story in stories)
    verdict.refused = sum(story.is_refused and not story.is_accepted for story in stories)
    verdict.unknown = sum(story.was_unknown for story in stories)
    verdict.resolved = sum(story.is_resolved for story in stories)
    verdict.turned_away = sum(attempt.answer == "away" for attempt in notes.attempts)
    for story in stories:
        rows = facts.rows.get(story.sent.name, [])
        verdict.duplicated += max(0, len(rows) - 1)
        if story.is_accepted:
            verdict.stored += bool(rows)
            verdict.lost += not rows
        problems += _faults_of(story, rows, facts, expected)
    if verdict.duplicated:
        problems.append(f"{verdict.duplicated} rows too many")
    if verdict.lost and not expected.is_loss_allowed:
        problems.append(f"{verdict.lost} accepted orders are not stored")
    strangers = set(facts.rows) - set(notes.stories)
    if strangers:
        problems.append(f"{len(strangers)} stored orders were never sent")
    problems += _view_faults(facts)
    if facts.differences:
        problems.append(f"audit: {facts.differences} groups of the views differ from the orders")
    is_balanced = all(abs(each) <= expected.imbalance for each in facts.imbalances)
    if not is_balanced and not expected.is_history_lost:
        problems.append(f"conservation: imbalance of the shards {facts.imbalances}")
    if facts.lost_in_gaps and not expected.is_loss_allowed:
        problems.append(f"conservation: the log says that it lost {facts.lost_in_gaps} records")
    if facts.dead_letters != expected.dead_letters:
        problems.append(f"{facts.dead_letters} dead letters, not {expected.dead_letters}")
    return verdict


def _faults_of(story: Story, rows: Sequence[Row], facts: Facts, expected: Expected) -> list[str]:
    """What is wrong with one order."""
    name, sent = story.sent.name, story.sent
    faults = []
    denied = [attempt.status for attempt in story.attempts if attempt.answer == "denied"]
    if denied:
        faults.append(f"{name}: answered {denied[0]}, which no client should see")
    if story.is_accepted and story.is_refused:
        faults.append(f"{name}: accepted and refused")
    # The log and the database's intake don't see each other's keys: an order of an outage may be answered
    # under an id of each, and a worker notes that both mean one order.
    orders = {facts.aliases.get(told, told) for told in story.ids}
    if len(orders) > 1 and not expected.is_loss_allowed:
        faults.append(f"{name}: answered with {len(story.ids)} different ids")
    if rows and sent.is_bad:
        faults.append(f"{name}: refused, and stored")
    if rows and story.attempts and story.surely_nothing:
        faults.append(f"{name}: stored, though every answer said that nothing was done")
    for row in rows:
        values = (row.store, row.drink, row.price_minor, row.quantity, row.ordered_at)
        wanted = (sent.store, sent.drink, sent.price_minor, sent.quantity, sent.ordered_at)
        if values != wanted:
            faults.append(f"{name}: stored as {values}, sent as {wanted}")
    if len(rows) == 1 and story.is_accepted and not expected.is_loss_allowed:
        faults += [
            f"{name}: told {told}, stored as {rows[0].order_id}"
            for told in story.ids
            if facts.aliases.get(told, told) != rows[0].order_id
        ]
    return faults


def _view_faults(facts: Facts) -> list[str]:
    """Where the views differ from a recomputation from the stored rows, which equal the notes by now."""
    hourly: Counter[tuple[int, str, str, str]] = Counter()
    minutely: Counter[tuple[int, str, str]] = Counter()
    for rows in facts.rows.values():
        for row in rows:
            hour = row.ordered_at - row.ordered_at % 3600
            minute = row.ordered_at - row.ordered_at % 60
            for measure, value in (("orders", 1), ("revenue", row.money)):
                hourly[hour, row.store, row.drink, measure] += value
                minutely[minute, row.store, measure] += value
            hourly[hour, row.store, row.drink, "quantity"] += row.quantity
    faults = []
    if hourly != facts.hourly:
        different = len(set(hourly.items()) ^ set(facts.hourly.items()))
        faults.append(f"view hourly: {different} values differ from the orders")
    if minutely != facts.minutely:
        different = len(set(minutely.items()) ^ set(facts.minutely.items()))
        faults.append(f"view minutely: {different} values differ from the orders")
    return faults


def quantile(sorted_values: Sequence[float], share: float) -> float:
    return sorted_values[min(len(sorted_values) - 1, int(share * len(sorted_values)))]


def add_latencies(verdict: Verdict, notes: Notes, began: float, ended: float) -> None:
    """p50, p99 and the share answered of what was first sent while the fault lasted."""
    first = [a for a in notes.attempts if a.is_first and began <= a.began < ended]
    good = sorted(attempt.seconds for attempt in first if attempt.answer == "ok")
    known = [attempt for attempt in first if attempt.answer != "refused"]
    if known:
        verdict.answered_percent = round(100 * len(good) / len(known), 1)
    if good:
        verdict.p50_ms = round(quantile(good, 0.5) * 1000, 1)
        verdict.p99_ms = round(quantile(good, 0.99) * 1000, 1)


def last_failure(attempts: Sequence[Attempt], since: float) -> float:
    """Seconds from `since` until the last attempt that began then, or was under way, came back without a
    definite answer; 0 when none did."""
    failed = [
        attempt.began + attempt.seconds
        for attempt in attempts
        if attempt.answer in ("unknown", "away") and attempt.began >= since
    ]
    return max(failed, default=since) - since


def throughput_percent(notes: Notes, since: float, until: float) -> float | None:
    """Accepted of what was first sent in a span, in percent; None when nothing was."""
    first = [a for a in notes.attempts if a.is_first and since <= a.began < until]
    known = [attempt for attempt in first if attempt.answer != "refused"]
    if not known:
        return None
    return round(100 * sum(a.answer == "ok" for a in known) / len(known), 1)
